"""The depth-first order, of one trie and of sorted runs that are merged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchllm.estimate.tokenized_job import TokenizedJob
from batchllm.jobs.depth_first import DepthFirst, depth_first, run_cuts


def job_of(prompts: list[list[int]]) -> TokenizedJob:
    indptr = np.concatenate(([0], np.cumsum([len(prompt) for prompt in prompts]))).astype(np.int64)
    requests = np.arange(len(prompts) + 1)
    tokens = np.array([token for prompt in prompts for token in prompt], np.int32)
    return TokenizedJob(requests[1:], requests, tokens, indptr, np.ones(len(prompts), np.int32))


def common(a: list[int], b: list[int]) -> int:
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def check(prompts: list[list[int]], found: DepthFirst) -> None:
    """In the order each shares with its predecessor the most that it shares with anything before it."""
    assert sorted(found.request.tolist()) == list(range(len(prompts)))
    ordered = [prompts[request][:-1] for request in found.request]
    assert ordered == sorted(ordered)
    shared = [common(a, b) for a, b in zip([[], *ordered], ordered, strict=False)]
    assert found.shared_tokens.tolist() == shared


@settings(max_examples=200, deadline=None)
@given(
    prompts=st.lists(
        st.lists(st.sampled_from([0, 1, 255, 256, 2**31 - 1]), min_size=1, max_size=6), min_size=1, max_size=30
    ),
    run_tokens=st.integers(1, 60),
)
def test_runs_that_are_merged_have_the_order_of_one_trie(prompts: list[list[int]], run_tokens: int) -> None:
    job = job_of(prompts)
    check(prompts, depth_first(job))
    check(prompts, depth_first(job, run_tokens))


@pytest.mark.parametrize(("run_tokens", "cuts"), [(1, [0, 1, 2, 3]), (4, [0, 1, 3]), (5, [0, 2, 3]), (6, [0, 3])])
def test_runs_have_as_many_tokens_as_they_may_or_one_request(run_tokens: int, cuts: list[int]) -> None:
    assert run_cuts(np.array([0, 3, 5, 6]), run_tokens) == cuts
