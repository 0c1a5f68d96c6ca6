"""docs/results/predictions.md: what attention is predicted to take on trees of published size. Nothing is measured.

    python -m benchmarks.predictions > docs/results/predictions.md

One layer in bfloat16, head_dim 128, decodes and the prefill of the last level, for every GPU of gpu_models(). "before":
plans made before they were chosen by this model, priced by it once, with states in float32 (data/SOURCES.md).
"""

from __future__ import annotations

import argparse
import csv
import itertools
from pathlib import Path

import batchllm_ext as ext
from benchmarks.compare_report import table
from tests.trees import HEADS, TREES, tree_case

HEAD_DIM = 128
BEFORE = Path(__file__).parent / "data" / "predictions_before.csv"
WAYS = {
    "before": "before",
    "plan": "ours",
    "cascade": "cascade",
    "cascade_float32": "cascade, float32",
    "per_request": "per request",
}


def seconds_before() -> dict[tuple[str, ...], float]:
    """By GPU, kind of rows ("decode", "prefill"), tree and heads."""
    with BEFORE.open() as file:
        return {
            (row["gpu"], row["rows"], row["tree"], row["heads"]): 1e-6 * float(row["us"])
            for row in csv.DictReader(file)
        }


def rows(gpu: str, *, prefill: bool) -> list[dict[str, str]]:
    name, before = ext.gpu_models()[gpu]["name"], seconds_before()
    found = []
    for tree, num_heads in itertools.product(TREES, HEADS):
        arguments = tree_case(tree, num_heads, HEAD_DIM, prefill=prefill).make_plan_arguments()
        explained = ext.plan_attention(**arguments, device=gpu).explain()
        heads = f"{num_heads[0]}/{num_heads[1]}"
        seconds = explained["predicted_seconds"][name]
        seconds["before"] = before[gpu, "prefill" if prefill else "decode", tree, heads]
        found.append(
            {
                "tree": tree,
                "heads": heads,
                **{title: f"{1e6 * seconds[way]:,.1f}" for way, title in WAYS.items()},
                "of cascade": f"{seconds['plan'] / seconds['cascade']:.2f}",
                "states MB": f"{explained['partial_bytes'] / 1e6:.1f}",
            }
        )
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("# Predictions: no GPU measured\n")
    print(
        "Microseconds of one layer in bfloat16, head_dim 128, by `plan.explain()` (csrc/attention/plan/gpu_time.h) at"
    )
    print(
        "data sheets' peaks. Written by `python -m benchmarks.predictions`. Trees: nodes per level _ tokens per level."
    )
    print("before: plans made before they were chosen by this model, priced by it once, with partial states in float32")
    print("(benchmarks/data/SOURCES.md).")
    for (gpu, model), prefill in itertools.product(ext.gpu_models().items(), (False, True)):
        print(f"\n## {model['name']}, {'prefill of the last level' if prefill else 'decodes'}\n")
        print(table(rows(gpu, prefill=prefill)))


if __name__ == "__main__":
    main()
