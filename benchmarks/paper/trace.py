"""What a production trace has to share, and what each policy finds of it in a pool of limited size."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import batchllm_ext as ext
from batchllm.options import READER_COST_TOKENS
from benchmarks.conversation_trace import Trace
from benchmarks.paper import workloads
from benchmarks.paper.sharing import CACHES, Row, saved_by_policy, trie_of


def description(path: Path, trace: Trace) -> list[Row]:
    working_set = workloads.working_set_tokens(workloads.of_trace(trace))
    return [
        {
            "trace": path.name,
            "requests": trace.num_requests,
            "prompt tokens": len(trace.tokens),
            "output tokens": int(trace.output_lengths.sum()),
            "working set, tokens": working_set,
        }
    ]


def exact_bound(trace: Trace) -> int:
    """Prompt tokens that nobody has to compute twice, counted without a trie; a prompt's last token is its own.

    In an expanded trace a token stands for its whole prefix, so distinct tokens are distinct prefixes.
    """
    is_inner = np.ones(len(trace.tokens), bool)
    is_inner[trace.indptr[1:] - 1] = False
    inner = trace.tokens[is_inner]
    occurs = np.zeros(inner.max() + 1, bool)
    occurs[inner] = True
    return len(inner) - int(occurs.sum())


def sharing(trace: Trace) -> list[Row]:
    """Without a limit of memory."""
    trie = trie_of(workloads.of_trace(trace))
    choices = {
        "exact bound": exact_bound(trace),
        "any depth, kappa 0": ext.choose_segments(trie).saved_tokens,
        "any depth, kappa 2 (default)": ext.choose_segments(trie, reader_cost=READER_COST_TOKENS).saved_tokens,
        "one level, exact": ext.choose_segments(trie, 1).saved_tokens,
        "one level, paper's pass": ext.choose_segments(trie, method="paper").saved_tokens,
    }
    return [
        {"choice": name, "tokens saved": saved, "saved %": 100 * saved / len(trace.tokens)}
        for name, saved in choices.items()
    ]


def pools(trace: Trace) -> list[Row]:
    """Pools as shares of the working set: the KV of all distinct prefixes and all outputs."""
    job = workloads.of_trace(trace)
    working_set = workloads.working_set_tokens(job)
    rows = []
    for percent in (10, 25, 50, 100):
        kv_tokens = working_set * percent // 100
        saved = saved_by_policy(job, kv_tokens)
        best_cache = max(saved[name] for name in CACHES)
        ahead = round((saved["ours"] - best_cache) / 100 * len(job.tokens))
        rows.append({"pool %": percent, "KV tokens": kv_tokens} | saved | {"ours ahead, tokens": ahead})
    return rows
