"""Jobs that all begin alike, as under one chat template: order and preemption work below the shared root."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace as change

import numpy as np
import pytest

import batchllm_ext as ext
from benchmarks.conversation_trace import SLICE, read_trace
from benchmarks.workloads import WORKLOADS
from tests.planner.replay import Replay, ragged, replay

Job = tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens, indptr, output lengths


def trace_job() -> Job:
    trace = read_trace(SLICE)
    return trace.tokens, trace.indptr, trace.output_lengths


def w3_job() -> Job:
    rows = WORKLOADS["W3"].rows()
    return *ragged([row["prompt_token_ids"] for row in rows]), np.array([row["max_tokens"] for row in rows], np.int32)


def chat_job() -> Job:
    """A template of 9 tokens, 5 system prompts with 2 to 6 questions each, and 4 questions without."""
    rng = np.random.default_rng(3)
    prompts = [[*range(9), 100 + question] for question in range(4)]
    for group in range(5):
        system = [*range(9), *([50 + group] * 12)]
        prompts += [[*system, *rng.integers(200, 999, 4)] for _ in range(2 + group)]
    rng.shuffle(prompts)
    return *ragged(prompts), rng.integers(1, 30, len(prompts)).astype(np.int32)


def plan(job: Job, num_pages: int, **options: object) -> tuple[ext.Segments, ext.BatchPlanner]:
    tokens, indptr, output_lengths = job
    segments = ext.choose_segments(ext.PrefixTrie(tokens, indptr, drop_last=1), reader_cost=2.0)
    planner = ext.BatchPlanner(
        tokens, indptr, segments, max_output_tokens=output_lengths, num_pages=num_pages, **options
    )
    return segments, planner


def children_of_the_root(segments: ext.Segments) -> tuple[int, dict[int, list[int]], list[int]]:
    """The segment of all requests; the requests of each segment right below it; the requests right below it."""
    (root,) = np.flatnonzero(segments.num_readers == segments.num_requests)
    groups, loners = defaultdict(list), []
    for request, segment in enumerate(segments.request_segment.tolist()):
        if segment == root:
            loners.append(request)
            continue
        while segments.parent[segment] != root:
            segment = segments.parent[segment]
        groups[segment].append(request)
    return int(root), groups, loners


@pytest.mark.parametrize("make_job", [trace_job, w3_job, chat_job])
def test_groups_below_the_root_stay_together_and_come_by_their_ratio(make_job: Callable[[], Job]) -> None:
    job = make_job()
    _, indptr, output_lengths = job
    segments, planner = plan(job, num_pages=1 << 20)
    _, groups, loners = children_of_the_root(segments)
    assert len(groups) >= 5

    rank = np.empty(len(output_lengths), np.int64)
    rank[planner.order] = np.arange(len(output_lengths))
    for requests in groups.values():
        ranks = rank[requests]
        assert ranks.max() - ranks.min() + 1 == len(requests), "others in between"

    num_segment_tokens = segments.token_end - segments.token_begin
    own_tokens = np.diff(indptr) - segments.token_end[segments.request_segment]
    ratios = {}  # by the first rank
    for top, requests in [*groups.items(), *((None, [request]) for request in loners)]:
        below = {} if top is None else {top}
        for segment in range(segments.num_segments):
            if segments.parent[segment] in below:
                below.add(segment)
        num_tokens = own_tokens[requests].sum() + sum(num_segment_tokens[segment] for segment in below)
        ratios[rank[requests].min()] = output_lengths[requests].sum() / num_tokens
    in_order = [ratios[first] for first in sorted(ratios)]
    assert in_order == sorted(in_order, reverse=True)
    assert len(set(in_order)) > 5


def preempted_by_step(result: Replay) -> list[tuple[set[int], set[int]]]:
    """(preempted, still decoding) of every step that preempts: who was answered in one step decodes in the next."""
    left = {request: len(output) for request, output in result.outputs.items()}
    steps, decoding = [], set()
    for batch in result.batches:
        sampled = batch.logit_request_ids.tolist()
        decodes = set(sampled) & decoding
        if decoding - decodes:
            steps.append((decoding - decodes, decodes))
        for request in sampled:
            left[request] -= 1
        decoding = {request for request in sampled if left[request] > 0}
    return steps


def test_the_youngest_are_preempted_and_shared_prefixes_are_not_computed_again() -> None:
    small = change(WORKLOADS["W3"], groups=6, readers=6, prefix=24, own=8, system=16)
    rows = small.rows()
    prompts = [row["prompt_token_ids"] for row in rows]
    output_lengths = np.array([row["max_tokens"] for row in rows], np.int32)
    job = (*ragged(prompts), output_lengths)
    optimistic = np.ones(len(prompts), np.int32)  # more start than can end
    segments, planner = plan(job, num_pages=300, page_size=1, expected_output_tokens=optimistic)
    root, groups, _ = children_of_the_root(segments)
    assert (segments.token_end[root], len(groups)) == (16, 6)

    result = replay(planner, prompts, page_size=1)
    rank = {request: i for i, request in enumerate(planner.order.tolist())}
    steps = preempted_by_step(result)
    assert len(steps) > 10
    for preempted, decoding in steps:
        assert min(map(rank.get, preempted)) > max(map(rank.get, decoding), default=-1)
    assert planner.stats["recomputed_tokens"] > 0
    for segment in range(segments.num_segments):
        owner = prompts[segments.owner_request[segment]]
        for end in range(segments.token_begin[segment], segments.token_end[segment]):
            assert result.num_computed[tuple(owner[: end + 1])] == 1
