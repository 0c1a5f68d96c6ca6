"""What one plan of a job does on a Ray cluster: `batchllm run --ray` against a Ray Data pipeline whose replicas, of the
same engine, answer shuffled rows a slice at a time.

    build/integrations/ray/bin/python -m benchmarks.ray_order

They take turns at being first, round by round. Computed prompt tokens are a count that no other load changes.
Seconds are from the job handed over to its last answer: they include the start of the replicas and, of the planned job,
reading and planning it. CPU seconds are those of the engines.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext

from batchllm import LLM, SamplingParams
from batchllm.integrations.ray_data import run_job_on_ray
from benchmarks.machine import QUIET_SHARE, Meter, describe
from benchmarks.workloads import WORKLOADS, batch_line

REPLICAS, THREADS = 2, 1
SLICE = 32  # rows; what Ray Data's own stage for vLLM takes where nothing is said
COLUMNS = f"{'order':10}{'computed':>10}{'of prompt':>11}{'CPU s':>9}{'seconds':>9}"

Rows = list[dict[str, Any]]  # prompt_token_ids, max_tokens
Engine = dict[str, Any]  # options of LLM


class SliceReplica:
    """What maps slices of a Dataset: an engine each, which shares what is in the slice."""

    def __init__(self, model: str, engine: Engine) -> None:
        self.llm = LLM(model, **engine)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        limits = rows["max_tokens"].tolist()
        params = [SamplingParams(temperature=0, ignore_eos=True, max_tokens=limit) for limit in limits]
        outputs = self.llm.generate([ids.tolist() for ids in rows["prompt_token_ids"]], params, use_tqdm=False)
        stats = self.llm.stats
        return {
            "output_tokens": [sum(len(output.outputs[0].token_ids) for output in outputs)],
            "computed_prompt_tokens": [stats["computed_prompt_tokens"]],
            "cpu_s": [stats["cpu_s"]],
        }


def shuffled(rows: Rows, model: Path, engine: Engine) -> dict[str, float]:
    """The rows are shuffled already."""
    answered = ray.data.from_items([{key: row[key] for key in ("prompt_token_ids", "max_tokens")} for row in rows])
    slices = answered.map_batches(
        SliceReplica,
        batch_size=SLICE,
        compute=ActorPoolStrategy(size=REPLICAS),
        num_cpus=THREADS,
        fn_constructor_args=(str(model.resolve()), engine),
    )
    found = slices.take_all()
    return {key: sum(row[key] for row in found) for key in ("output_tokens", "computed_prompt_tokens", "cpu_s")}


def planned(rows: Rows, model: Path, engine: Engine) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "in.jsonl"
        lines = map(batch_line, count(), rows)
        exact = {"temperature": 0, "ignore_eos": True}
        source.write_text("".join(json.dumps(line | {"body": line["body"] | exact}) + "\n" for line in lines))
        summary = run_job_on_ray(
            source, Path(directory) / "out", model, ray="local", replicas=REPLICAS, log=lambda line: None, **engine
        )
    return {key: summary.stats[key] for key in ("output_tokens", "computed_prompt_tokens", "cpu_s")}


ORDERS: dict[str, Callable[[Rows, Path, Engine], dict[str, float]]] = {"planned": planned, "shuffled": shuffled}


def run(rows: Rows, model: Path, engine: Engine, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """The runs of each order. Raises ValueError where an output has not the length that was asked for."""
    runs: dict[str, list[dict[str, Any]]] = {order: [] for order in ORDERS}
    expected = sum(row["max_tokens"] for row in rows)
    for number in range(rounds):
        for order in list(ORDERS)[:: -1 if number % 2 else 1]:
            with Meter() as meter:
                figures = ORDERS[order](rows, model, engine)
            if figures["output_tokens"] != expected:
                raise ValueError(f"{order}: expected {expected:,} output tokens, got {figures['output_tokens']:,}")
            times = {"wall_s": round(meter.wall_s, 3), "foreign_share": round(meter.foreign_share, 3)}
            runs[order].append(figures | times)
    return runs


def report(rows: Rows, runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [COLUMNS]
    prompt_tokens = sum(len(row["prompt_token_ids"]) for row in rows)
    keys = ("computed_prompt_tokens", "cpu_s", "wall_s")
    middle = {
        order: {key: statistics.median(run[key] for run in of_order) for key in keys}
        for order, of_order in runs.items()
    }
    for order, figures in middle.items():
        computed = figures["computed_prompt_tokens"]
        times = f"{figures['cpu_s']:9.1f}{figures['wall_s']:9.1f}"
        lines.append(f"{order:10}{computed:10,.0f}{computed / prompt_tokens:11.1%}{times}")
    fewer, cpu, faster = (middle["shuffled"][key] / middle["planned"][key] for key in middle["planned"])
    lines.append(f"planned: {fewer:.2f}x fewer prompt tokens computed, {cpu:.2f}x less CPU time, {faster:.2f}x faster")
    most = max(run["foreign_share"] for of_order in runs.values() for run in of_order)
    if most >= QUIET_SHARE:
        lines.append(f"others had up to {most:.0%} of the machine: seconds mean little")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--workload", default="W3", choices=WORKLOADS)
    parser.add_argument("--scale", type=float, default=3.0, help="of the number of groups")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", help="file that gets a line per run")
    options = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # More than the replicas take: Ray Data has tasks of its own.
    num_cpus = REPLICAS * THREADS + 2
    ray.init("local", num_cpus=num_cpus, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    logging.getLogger("ray.data").setLevel("ERROR")
    DataContext.get_current().enable_progress_bars = False
    rows = WORKLOADS[options.workload].scaled(options.scale).rows()
    engine = {"dtype": options.dtype, "num_threads": THREADS}
    runs = run(rows, options.model, engine, options.rounds)
    print(f"{options.workload}, {len(rows)} lines, {REPLICAS} replicas of {THREADS} thread; {describe()}")
    print(*report(rows, runs), sep="\n")
    if options.json:
        with open(options.json, "a") as file:
            for order, of_order in runs.items():
                head = {"workload": options.workload, "order": order}
                file.writelines(json.dumps(head | run) + "\n" for run in of_order)


if __name__ == "__main__":
    main()
