"""An indptr of int32, as other engines keep it, is taken wherever one of int64 is."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import batchllm_ext as ext
from batchllm.estimate.simulate import Policy, SimulatedJob, simulate
from tests.planner.replay import ragged, replay
from tests.simulate.jobs import random_job

PROMPTS = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6], [7, 8]]


def test_a_job_with_int32_offsets_is_planned_as_with_int64() -> None:
    plans = []
    for index_type in (np.int64, np.int32):
        tokens, indptr = ragged(PROMPTS)
        indptr = indptr.astype(index_type)
        trie = ext.PrefixTrie(tokens, indptr, drop_last=1)
        trie.audit()
        segments = ext.choose_segments(trie)
        bounds = np.full(len(PROMPTS), 3, np.int32)
        planner = ext.BatchPlanner(tokens, indptr, segments, max_output_tokens=bounds, num_pages=40, page_size=2)
        assert planner.add_requests(tokens, indptr, segments, max_output_tokens=bounds) == len(PROMPTS)
        del indptr, segments, trie
        gc.collect()
        result = replay(planner, PROMPTS * 2, page_size=2)
        plans.append((result.outputs, result.finish_order, planner.stats))
    assert plans[0] == plans[1]


@pytest.mark.parametrize("policy", list(Policy))
def test_a_job_with_int32_offsets_is_simulated_as_with_int64(policy: Policy) -> None:
    case = random_job(3)
    job = case.job
    short = SimulatedJob(job.tokens, job.indptr.astype(np.int32), job.output_tokens, job.max_output_tokens)
    results = [simulate(each, policy, **case.pool) for each in (job, short)]
    assert str(results[0]) == str(results[1])


def test_what_int32_offsets_say_wrong_is_named_too() -> None:
    tokens, indptr = ragged(PROMPTS)
    with pytest.raises(ValueError, match="indptr decreases at entry 2"):
        ext.PrefixTrie(tokens, np.array([0, 3, 2], np.int32))
    with pytest.raises(ValueError, match="indptr: the last entry is 2147483647, but tokens has 13 entries"):
        ext.PrefixTrie(tokens, np.array([0, 2**31 - 1], np.int32))
    with pytest.raises(ValueError, match="indptr: expected stride 1 in its last dimension, got 2"):
        ext.PrefixTrie(tokens, np.repeat(indptr.astype(np.int32), 2)[::2])
    with pytest.raises(ValueError, match="indptr decreases at entry 2"):
        ext.PrefixTrie(tokens, np.array([0, 13, -(2**63)]))
