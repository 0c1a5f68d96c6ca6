#!/usr/bin/env python3
"""Runs a job of token-id prompts through the engine, greedy and to the exact output length, and times it.

    python benchmarks/workloads.py out/workloads
    python benchmarks/bench_engine.py --workload out/workloads/W1.jsonl --model DIR --dtype bfloat16 --runs 3 --json

The workload has one JSON object a line: prompt_token_ids, max_tokens. Time is from the job handed over to the last
answer; loading the model is not in it. Several --levels run interleaved (A B A B) in one process.
"""

import argparse
import json
import resource
import statistics
from pathlib import Path

from batchllm import LLM, SamplingParams


def read_workload(path: Path) -> tuple[list[list[int]], list[SamplingParams]]:
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    prompts = [row["prompt_token_ids"] for row in rows]
    return prompts, [SamplingParams(temperature=0, max_tokens=row["max_tokens"], ignore_eos=True) for row in rows]


def run_once(llm: LLM, prompts: list[list[int]], params: list[SamplingParams]) -> dict:
    outputs = llm.generate(prompts, params, use_tqdm=False)
    for index, (output, p) in enumerate(zip(outputs, params, strict=True)):
        got = len(output.outputs[0].token_ids)
        assert got == p.max_tokens, f"request {index}: {got} tokens instead of {p.max_tokens}"
    stats = llm.stats
    wall_s = stats["seconds"]["total"]
    return {
        "wall_s": round(wall_s, 3),
        "requests": len(prompts),
        "prompt_tokens": stats["prompt_tokens"],
        "computed_prompt_tokens": stats["computed_prompt_tokens"],
        "saved_percent": round(100 * (1 - stats["computed_prompt_tokens"] / stats["prompt_tokens"]), 2),
        "output_tokens": stats["output_tokens"],
        "output_tokens_per_s": round(stats["output_tokens"] / wall_s, 1),
        "steps": stats["steps"],
        "preemptions": stats["preemptions"],
        "peak_kv_tokens": stats["peak_kv_tokens"],
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "seconds": {phase: round(seconds, 3) for phase, seconds in stats["seconds"].items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kv-cache-tokens", type=int)
    parser.add_argument("--max-batch-tokens", type=int)
    parser.add_argument("--num-threads", type=int)
    parser.add_argument("--levels", nargs="+", default=["any"], help="any, 1, 0; several are run in turns")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object a run")
    options = parser.parse_args()

    prompts, params = read_workload(options.workload)
    llms = {
        levels: LLM(
            options.model,
            dtype=options.dtype,
            levels=None if levels == "any" else int(levels),
            kv_cache_tokens=options.kv_cache_tokens,
            max_batch_tokens=options.max_batch_tokens,
            num_threads=options.num_threads,
        )
        for levels in options.levels
    }
    rows: dict[str, list[dict]] = {levels: [] for levels in llms}
    for run in range(options.runs):
        for levels, llm in llms.items():
            row = {"workload": options.workload.stem, "levels": levels, "run": run}
            row |= {"dtype": str(llm.dtype).removeprefix("torch."), **run_once(llm, prompts, params)}
            rows[levels].append(row)
            if options.json:
                print(json.dumps(row), flush=True)
    for levels, runs in rows.items():
        times = [row["wall_s"] for row in runs]
        if not options.json:
            spread = f"{min(times):.2f} to {max(times):.2f}"
            print(
                f"{options.workload.stem} levels={levels}: median {statistics.median(times):.2f} s ({spread}),", end=" "
            )
            print(
                f"saved {runs[0]['saved_percent']} %, {runs[0]['steps']} steps, {runs[0]['peak_rss_gib']} GiB peak RSS"
            )


if __name__ == "__main__":
    main()
