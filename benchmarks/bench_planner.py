"""Seconds and memory of planning a job, against reading it once and against a plain sort.

    python benchmarks/bench_planner.py --prompts 1000000 --tokens 1000 --json

The job shares prefixes on three levels (one system prompt, documents, questions about them) and is shuffled. Two
yardsticks are measured in the same run: copying the tokens into warm memory and reading them once (the memory pass),
and plain_sort.cpp, which finds the same prefixes by memcmp.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import batchllm_ext as ext

MIB = 1 << 20
OUTPUT_TOKENS, PAGE_SIZE = 64, 16
EXTRA_BYTES_A_REQUEST, EXTRA_BYTES_A_NODE = 128, 32  # what planning may take beside the job


def make_job(num_prompts: int, num_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """20 % system prompt, 50 % documents of 64 readers, 10 % questions of 8 readers; the rest is each prompt's own."""
    rng = np.random.default_rng(0)
    tokens = np.empty((num_prompts, num_tokens), np.int32)
    reader = rng.permutation(num_prompts)
    begin = 0
    for level_tokens, num_readers in levels(num_prompts, num_tokens):
        end = begin + level_tokens
        runs = rng.integers(0, 32_000, (-(-num_prompts // num_readers), end - begin), np.int32)
        for rows in np.array_split(np.arange(num_prompts), max(num_prompts // 10_000, 1)):  # NumPy copies what it takes
            tokens[rows[0] : rows[-1] + 1, begin:end] = runs[reader[rows] // num_readers]
        begin = end
    return tokens.reshape(-1), np.arange(num_prompts + 1, dtype=np.int64) * num_tokens


def levels(num_prompts: int, num_tokens: int) -> list[tuple[int, int]]:
    """(tokens, readers of one run) of each level, root first."""
    shared = [(round(share * num_tokens), n) for share, n in ((0.2, num_prompts), (0.5, 64), (0.1, 8))]
    return [*shared, (num_tokens - sum(tokens for tokens, _ in shared), 1)]


def pages_for_running(num_running: int, num_prompts: int, num_tokens: int) -> int:
    """KV pages that hold about `num_running` requests at their longest."""
    *shared, (own_tokens, _) = levels(num_prompts, num_tokens)
    own_pages = -(-(own_tokens + OUTPUT_TOKENS) // PAGE_SIZE)
    return num_running * own_pages + sum(-(-num_running // n) * -(-tokens // PAGE_SIZE) for tokens, n in shared)


def resident_bytes(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024


@dataclass
class Phases:
    """Seconds of each phase, and the most memory it has beside what was there before the first, in bytes."""

    seconds: dict[str, float] = field(default_factory=dict)
    extra_bytes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ctypes.CDLL(None).malloc_trim(0)  # or what was freed before would serve the first phase unseen
        self.base_bytes = resident_bytes("VmRSS")

    def run(self, name: str, work: Callable[[], object]) -> object:
        with open("/proc/self/clear_refs", "w") as clear_refs:
            clear_refs.write("5")  # the peak starts again at what is resident now
        begin = time.perf_counter()
        result = work()
        self.seconds[name] = time.perf_counter() - begin
        self.extra_bytes[name] = resident_bytes("VmHWM") - self.base_bytes
        return result


def copy_and_read_seconds(tokens: np.ndarray) -> float:
    warm = np.zeros_like(tokens)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        np.copyto(warm, tokens)
        warm.max()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def plain_sort_seconds(tokens: np.ndarray, indptr: np.ndarray, num_threads: int, expected_prefixes: int) -> float:
    source = Path(__file__).with_name("plain_sort.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "plain_sort.so")
        compiler = os.environ.get("CXX", "c++")
        subprocess.run(
            [compiler, "-std=c++20", "-O3", "-shared", "-fPIC", "-pthread", source, "-o", library], check=True
        )
        plain_sort = ctypes.CDLL(str(library)).plain_sort
    plain_sort.restype = ctypes.c_int64
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (tokens, indptr)]
    begin = time.perf_counter()
    num_prefixes = plain_sort(*pointers, len(indptr) - 1, 1, num_threads)
    seconds = time.perf_counter() - begin
    if num_prefixes != expected_prefixes:
        raise RuntimeError(f"plain_sort found {num_prefixes} distinct prefixes, the trie has {expected_prefixes}")
    return seconds


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
    max_output = np.full(num_prompts, OUTPUT_TOKENS, np.int32)

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
            num_pages=pages_for_running(num_running, num_prompts, num_tokens),
            page_size=PAGE_SIZE,
            max_batch_tokens=num_running * num_tokens,  # all that fit start in the first batch
        ),
    )
    plan_s = sum(phases.seconds.values())
    pass_s = copy_and_read_seconds(tokens)
    plain_sort_s = plain_sort_seconds(tokens, indptr, num_threads, trie.num_tokens)
    step_us, width = step_microseconds(planner, 50)
    return {
        "num_prompts": num_prompts,
        "num_tokens": num_tokens,
        "num_threads": num_threads,
        "num_nodes": trie.num_nodes,
        "num_segments": segments.num_segments,
        "saved_percent": round(100 * segments.saved_tokens / segments.prompt_tokens, 2),
        "job_mib": round(tokens.nbytes / MIB, 1),
        "seconds": {name: round(value, 4) for name, value in phases.seconds.items()},
        "plan_s": round(plan_s, 4),
        "memory_pass_s": round(pass_s, 4),
        "ratio_to_memory_pass": round(plan_s / pass_s, 2),
        "plain_sort_s": round(plain_sort_s, 4),
        "plain_sort_ratio": round(plain_sort_s / pass_s, 2),
        "extra_bytes_per_request": round(max(phases.extra_bytes.values()) / num_prompts, 1),
        "extra_bytes_by_phase": {name: round(value / num_prompts, 1) for name, value in phases.extra_bytes.items()},
        "extra_bytes_allowed": round(EXTRA_BYTES_A_REQUEST + EXTRA_BYTES_A_NODE * trie.num_nodes / num_prompts, 1),
        "step_us": round(step_us, 1),
        "step_num_running": width,
        "step_ns_per_request": round(1e3 * step_us / width, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=1000, help="tokens per prompt")
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    parser.add_argument("--running", type=int, default=10_000, help="requests that the KV pool holds at their longest")
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    args = parser.parse_args()
    num_threads = args.threads or os.cpu_count() or 1
    result = bench(args.prompts, args.tokens, num_threads, min(args.running, args.prompts))
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:20} {value}")


if __name__ == "__main__":
    main()
