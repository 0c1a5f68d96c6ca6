#!/usr/bin/env python3
"""Runs a job of token-id prompts through the engine, greedy and to the exact output length, and times it.

    python benchmarks/workloads.py out/workloads
    python benchmarks/bench_engine.py --workload out/workloads/W1.jsonl --model DIR --dtype bfloat16 --runs 3 --json

The workload has one JSON object per line: prompt_token_ids, max_tokens. Time is from the job handed over to the last
answer; loading the model is not in it. Several --levels run interleaved (A B A B) in one process. --serve makes it a
contestant (contestant.py): it reads jobs from standard input, to be compared with other engines or versions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from batchllm import LLM, SamplingParams, __version__

sys.path.append(str(Path(__file__).resolve().parent.parent))

from batchllm.options import BACKENDS, QUANTIZATIONS
from benchmarks.contestant import WARM_UP, Contestant, Outputs, Request, read_requests, run_job, serve


class BatchLLM(Contestant):
    engine = "batchllm"
    version = __version__

    def __init__(self, options: argparse.Namespace, levels: str) -> None:
        self.options = options
        self.levels = levels
        self.variant = "" if levels == "any" else f"levels {levels}"
        self.llm: Any = None

    def load(self, kv_tokens: int | None) -> None:
        self.llm = None  # give the old pool back first
        self.llm = LLM(
            self.options.model,
            dtype=self.options.dtype,
            quantize=self.options.quantize,
            backend=self.options.backend,
            levels=None if self.levels == "any" else int(self.levels),
            kv_cache_tokens=kv_tokens,
            max_batch_tokens=self.options.max_batch_tokens,
            num_threads=self.options.num_threads,
        )
        self.dtype = self.options.quantize or str(self.llm.dtype).removeprefix("torch.")
        self.prepare(WARM_UP)()

    def prepare(self, requests: list[Request]) -> Callable[[], tuple[Outputs, dict[str, Any]]]:
        prompts = [request.prompt_token_ids for request in requests]
        params = [SamplingParams(temperature=0, max_tokens=r.max_tokens, ignore_eos=True) for r in requests]

        def job() -> tuple[Outputs, dict[str, Any]]:
            results = self.llm.generate(prompts, params, use_tqdm=False)
            stats = self.llm.stats
            names = ("computed_prompt_tokens", "steps", "preemptions", "peak_kv_tokens", "products")
            seconds = {phase: round(seconds, 3) for phase, seconds in stats["seconds"].items()}
            outputs = [result.outputs[0].token_ids for result in results]
            return outputs, {name: stats[name] for name in names} | {"seconds": seconds}

        return job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    job = parser.add_mutually_exclusive_group(required=True)
    job.add_argument("--workload", type=Path)
    job.add_argument("--serve", action="store_true", help="be a contestant; takes one of --levels")
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantize", choices=QUANTIZATIONS)
    parser.add_argument("--backend", default="auto", choices=BACKENDS)
    parser.add_argument("--kv-cache-tokens", type=int)
    parser.add_argument("--max-batch-tokens", type=int)
    parser.add_argument("--num-threads", type=int)
    parser.add_argument("--levels", nargs="+", default=["any"], help="any, 1, 0; several are run in turns")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object per run")
    options = parser.parse_args()
    if options.serve:
        serve(BatchLLM(options, options.levels[0]))
    else:
        run_workload(options)


def run_workload(options: argparse.Namespace) -> None:
    requests = read_requests(options.workload)
    engines = [BatchLLM(options, levels) for levels in options.levels]
    for engine in engines:
        engine.load(options.kv_cache_tokens)
    rows: dict[str, list[dict]] = {engine.levels: [] for engine in engines}
    for run in range(options.runs):
        for engine in engines:
            row = {"workload": options.workload.stem, "levels": engine.levels, "run": run, "dtype": engine.dtype}
            row |= run_job(engine, requests)
            del row["first_tokens"]
            row["saved_percent"] = round(100 * (1 - row["computed_prompt_tokens"] / row["prompt_tokens"]), 2)
            rows[engine.levels].append(row)
            if options.json:
                print(json.dumps(row), flush=True)
    if not options.json:
        for levels, runs in rows.items():
            times = [row["wall_s"] for row in runs]
            print(
                f"{options.workload.stem} levels={levels}: median {statistics.median(times):.2f} s"
                f" ({min(times):.2f} to {max(times):.2f}), saved {runs[0]['saved_percent']} %,"
                f" {runs[0]['steps']} steps, {runs[0]['peak_rss_gib']} GiB peak RSS"
            )


if __name__ == "__main__":
    main()
