"""How many prompt tokens need not be computed, and how long it takes to find them."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

import batchllm_ext as ext
from batchllm.estimate.simulate import Policy, SimulatedJob, simulate
from benchmarks.paper import pure_python_tree, workloads
from benchmarks.paper.hardware import A100_GIB, pool_tokens

Row = dict[str, str | int | float]

OURS = {
    "ours": Policy.BATCHLLM,
    "ours, one level": Policy.BATCHLLM_SINGLE,
    "ours, blended": Policy.BATCHLLM_BLEND,
}
CACHES = {
    "LRU": Policy.LRU,
    "LRU, sorted": Policy.LRU_SORTED,
    "radix, LPM": Policy.RADIX_LPM,
    "radix, DFS": Policy.RADIX_DFS,
}


def trie_of(job: SimulatedJob) -> ext.PrefixTrie:
    return ext.PrefixTrie(job.tokens, job.indptr, drop_last=1)


def saved_percent(segments: ext.Segments) -> float:
    return 100 * segments.saved_tokens / segments.prompt_tokens


def saved_by_policy(job: SimulatedJob, kv_tokens: int) -> Row:
    """Percent of the prompt tokens, what is computed again after preemptions taken off."""
    policies = OURS | CACHES
    return {name: 100 * simulate(job, policy, kv_tokens=kv_tokens).saved_share for name, policy in policies.items()}


def sharing_degrees() -> list[Row]:
    """The paper's microbenchmark: 6,400 requests of 2,000 shared and 200 own tokens, 100 tokens of output."""
    rows = []
    for degree in (2, 4, 8, 16, 32, 64):
        job = workloads.two_level(requests=6400, degree=degree, prefix=2000, own=200, output=100)
        paper = saved_percent(ext.choose_segments(trie_of(job), method="paper"))
        for gib in (A100_GIB, 40, 24):
            ideal = 100 * (1 - 1 / degree) * 2000 / 2200
            row: Row = {"degree": degree, "GPU GiB": gib, "ideal": ideal, "paper's pass": paper}
            rows.append(row | saved_by_policy(job, pool_tokens(gib)))
    return rows


def long_prefix() -> list[Row]:
    """The paper's 92.6 % against 6.3 %: a prefix of 16,000 tokens at degree 16."""
    job = workloads.two_level(requests=6400, degree=16, prefix=16_000, own=200, output=100)
    rows = []
    for gib in (24, 32, 40, 48, 64, 80, 96, 141):
        kv_tokens = pool_tokens(gib)
        rows.append({"GPU GiB": gib, "KV tokens": kv_tokens} | saved_by_policy(job, kv_tokens))
    return rows


def depth() -> list[Row]:
    """Any depth against a single level on three-level trees of random shape, without a limit of memory."""
    rows = []
    for instruction in (30, 100, 300, 1000):
        for seed in range(2):
            job = workloads.three_level(instruction, seed)
            trie = trie_of(job)
            any_depth = saved_percent(ext.choose_segments(trie))
            single = saved_percent(ext.choose_segments(trie, 1))
            rows.append(
                {
                    "instruction": instruction,
                    "requests": trie.num_requests,
                    "any depth": any_depth,
                    "one level": single,
                    "paper's pass": saved_percent(ext.choose_segments(trie, method="paper")),
                    "depth gains": any_depth - single,
                }
            )
    return rows


def preprocessing() -> list[Row]:
    """Seconds to find and choose prefixes, against the release's algorithm in plain Python, in turns in one process."""
    degree_16 = workloads.two_level(requests=6400, degree=16, prefix=2000, own=200, output=1)
    distinct = workloads.two_level(requests=20_000, degree=1, prefix=0, own=100, output=1)
    distinct.tokens[distinct.indptr[:-1]] = np.arange(20_000)
    return [
        time_both("6,400 x (2,000 + 200), degree 16", degree_16, reported_s=1.8, repeats=3),
        time_both("20,000 x 100, distinct first tokens", distinct, reported_s=115, repeats=1),
    ]


def time_both(name: str, job: SimulatedJob, *, reported_s: float, repeats: int) -> Row:
    rows = [job.tokens[begin : end - 1].tolist() for begin, end in zip(job.indptr, job.indptr[1:], strict=False)]

    def in_python() -> int:
        root = pure_python_tree.build_tree(rows)
        pure_python_tree.enlarge_first_level(root)
        return pure_python_tree.saved_tokens(root)

    def in_cpp() -> int:
        return ext.choose_segments(trie_of(job), method="paper").saved_tokens

    python_s, cpp_s = [], []
    for _ in range(repeats):
        duration, python_saved = timed(in_python)
        python_s.append(duration)
        for _ in range(5):
            duration, cpp_saved = timed(in_cpp)
            cpp_s.append(duration)
        if python_saved != cpp_saved:
            raise AssertionError(f"{name}: {python_saved} tokens saved in Python, {cpp_saved} in C++")
    return {
        "job": name,
        "saved": 100 * cpp_saved / len(job.tokens),
        "reported s": reported_s,
        "plain Python s": min(python_s),
        "ours ms": 1e3 * min(cpp_s),
        "times faster": round(min(python_s) / min(cpp_s)),
    }


def timed(work: Callable[[], int]) -> tuple[float, int]:
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result
