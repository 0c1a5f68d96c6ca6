"""Seconds and memory of planning a job, against reading it once.

    python benchmarks/bench_planner.py --prompts 100000 --tokens 1000 --json

The job shares prefixes on three levels (one system prompt, documents, questions about them) and is shuffled. The
yardstick is measured in the same run: copying the tokens into warm memory and reading them once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

import batchllm_ext as ext

MIB = 1 << 20


def make_job(num_prompts: int, num_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """20 % system prompt, 50 % documents of 64 readers, 10 % questions of 8 readers; the rest is each prompt's own."""
    rng = np.random.default_rng(0)
    tokens = np.empty((num_prompts, num_tokens), np.int32)
    row = rng.permutation(num_prompts)
    begin = 0
    for share, num_readers in ((0.2, num_prompts), (0.5, 64), (0.1, 8), (1.0, 1)):
        end = min(begin + round(share * num_tokens), num_tokens)
        num_runs = -(-num_prompts // num_readers)
        runs = rng.integers(0, 32_000, (num_runs, end - begin), np.int32)
        tokens[row, begin:end] = runs[np.arange(num_prompts) // num_readers]
        begin = end
    return tokens.reshape(-1), np.arange(num_prompts + 1, dtype=np.int64) * num_tokens


def resident_mib(field: str) -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024


@dataclass
class Phases:
    seconds: dict[str, float] = field(default_factory=dict)
    peak_extra_mib: float = 0.0

    def run(self, name: str, work: Callable[[], object]) -> object:
        with open("/proc/self/clear_refs", "w") as clear_refs:
            clear_refs.write("5")  # the peak starts again at what is resident now
        begin = time.perf_counter()
        result = work()
        self.seconds[name] = time.perf_counter() - begin
        self.peak_extra_mib = max(self.peak_extra_mib, resident_mib("VmHWM") - self.base_mib)
        return result

    def __post_init__(self) -> None:
        self.base_mib = resident_mib("VmRSS")


def copy_and_read_seconds(tokens: np.ndarray) -> float:
    warm = np.zeros_like(tokens)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        np.copyto(warm, tokens)
        warm.max()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def step_microseconds(planner: ext.BatchPlanner, num_steps: int) -> tuple[float, int]:
    """Median of next_batch() + commit() once as many requests run as ever will, and how many that is."""
    durations: list[float] = []
    while len(durations) < num_steps:
        begin = time.perf_counter()
        batch = planner.next_batch()
        if batch is None:
            break
        planned = time.perf_counter()
        sampled = np.zeros(len(batch.logit_rows), np.int32)
        resumed = time.perf_counter()
        planner.commit(sampled)
        if batch.num_prefill_tokens == 0:
            durations.append(planned - begin + time.perf_counter() - resumed)
            width = batch.num_decode_tokens
    return 1e6 * statistics.median(durations), width


def bench(num_prompts: int, num_tokens: int, num_threads: int, num_running: int) -> dict[str, object]:
    tokens, indptr = make_job(num_prompts, num_tokens)
    max_output = np.full(num_prompts, 64, np.int32)
    page_size = 16

    phases = Phases()
    trie = phases.run("trie", lambda: ext.PrefixTrie(tokens, indptr, drop_last=1, num_threads=num_threads))
    segments = phases.run("segments", lambda: ext.choose_segments(trie))
    planner = phases.run(
        "planner",
        lambda: ext.BatchPlanner(
            tokens,
            indptr,
            segments,
            max_output_tokens=max_output,
            num_pages=num_running * -(-num_tokens // page_size),
            page_size=page_size,
            max_batch_tokens=num_running * num_tokens,  # all that fit start in the first batch
        ),
    )
    plan_s = sum(phases.seconds.values())
    yardstick_s = copy_and_read_seconds(tokens)
    step_us, width = step_microseconds(planner, 50)
    return {
        "num_prompts": num_prompts,
        "num_tokens": num_tokens,
        "num_threads": num_threads or os.cpu_count(),
        "num_nodes": trie.num_nodes,
        "num_segments": segments.num_segments,
        "saved_percent": round(100 * segments.saved_tokens / segments.prompt_tokens, 2),
        "seconds": {name: round(value, 4) for name, value in phases.seconds.items()},
        "plan_s": round(plan_s, 4),
        "copy_and_read_s": round(yardstick_s, 4),
        "ratio": round(plan_s / yardstick_s, 2),
        "job_mib": round(tokens.nbytes / MIB, 1),
        "peak_extra_mib": round(phases.peak_extra_mib, 1),
        "step_us": round(step_us, 1),
        "step_num_running": width,
        "step_ns_per_request": round(1e3 * step_us / width, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=1000, help="tokens a prompt")
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    parser.add_argument("--running", type=int, default=4096, help="prompts the KV pool would hold unshared")
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    args = parser.parse_args()
    result = bench(args.prompts, args.tokens, args.threads, min(args.running, args.prompts))
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:20} {value}")


if __name__ == "__main__":
    main()
