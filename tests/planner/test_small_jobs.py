"""Trie, segments and order of small jobs, five thousand or twenty, against a model that knows nothing but prefixes.

Hypothesis draws the seed of a hundred jobs at a time. A prompt ends in a token of its own, which is not shared
(drop_last=1), so what is shared may be empty, equal, or the prefix of another.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batchllm_ext as ext
from tests.planner.replay import make_planner, ragged

Prefix = tuple[int, ...]
Nodes = dict[Prefix, list[int]]  # where prompts part or end -> the two or more requests that begin so

JOBS_A_SEED = 100
OWN_TOKEN = 9


def random_job(rng: random.Random) -> list[Prefix]:
    prompts: list[Prefix] = []
    for _ in range(rng.randint(1, 12)):
        base = rng.choice(prompts) if prompts and rng.random() < 0.7 else ()
        tail = tuple(rng.choice((-7, 0, 1)) for _ in range(rng.choice((0, 0, 1, 2, 5))))
        prompts.append(base[: rng.randint(0, len(base))] + tail)
    return prompts


def seeded_jobs(test: Callable[[list[Prefix], random.Random], None]) -> Callable[[int], None]:
    """Runs the test on 100 random jobs for each of 50 seeds; in `make test-full` of 200."""

    @given(st.integers(0, 2**32 - 1))
    def run_seed(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(JOBS_A_SEED):
            test(random_job(rng), rng)

    @pytest.mark.parametrize("num_seeds", [50, pytest.param(200, marks=pytest.mark.full)])
    def run(num_seeds: int) -> None:
        settings(max_examples=num_seeds, deadline=None)(run_seed)()

    run.__name__ = test.__name__
    return run


def readers_of_prefixes(prompts: list[Prefix]) -> Nodes:
    readers: Nodes = defaultdict(list)
    for request, prompt in enumerate(prompts):
        for end in range(1, len(prompt) + 1):
            readers[prompt[:end]].append(request)
    return readers


def nodes_of(readers: Nodes) -> Nodes:
    goes_on_whole = {(prefix[:-1], len(ids)) for prefix, ids in readers.items()}
    return {prefix: ids for prefix, ids in readers.items() if len(ids) >= 2 and (prefix, len(ids)) not in goes_on_whole}


def chains_of(prompts: list[Prefix], chosen: tuple[Prefix, ...]) -> list[list[Prefix]]:
    return [sorted((p for p in chosen if p == prompt[: len(p)]), key=len) for prompt in prompts]


def best_value(prompts: list[Prefix], nodes: Nodes, reader_cost: float, any_depth: bool) -> float:
    """Prompt tokens not computed less the cost of all links, at best, by trying every choice."""
    best = 0.0
    for size in range(1, len(nodes) + 1):
        for chosen in itertools.combinations(nodes, size):
            chains = chains_of(prompts, chosen)
            apart = [chain[-1:] for chain in chains]  # a single level: the longest
            saved = sum(len(chain[-1]) for chain in chains if chain)
            if any_depth:
                links = chains_of(list(chosen), chosen)  # each ends in the prefix itself
                computed = sum(len(link[-1]) - (len(link[-2]) if len(link) > 1 else 0) for link in links)
                best = max(best, saved - computed - reader_cost * sum(map(len, chains)))
            best = max(best, saved - sum(map(len, chosen)) - reader_cost * sum(map(len, apart)))
    return best


@seeded_jobs
def test_trie_holds_exactly_the_shared_prefixes(prompts: list[Prefix], rng: random.Random) -> None:
    trie = ext.PrefixTrie(*ragged([(*prompt, OWN_TOKEN) for prompt in prompts]), drop_last=1)
    readers = readers_of_prefixes(prompts)
    order = trie.order.tolist()
    assert order == sorted(range(len(prompts)), key=lambda request: (prompts[request], request))
    assert trie.num_tokens == len(readers)
    assert (trie.parent[0], trie.token_end[0], trie.request_end[0]) == (-1, 0, len(prompts))
    begin, end = trie.request_begin.tolist(), trie.request_end.tolist()
    prefixes = [prompts[order[begin[node]]][: trie.token_end[node]] for node in range(trie.num_nodes)]
    assert prefixes[1:] == sorted(prefixes[1:])  # preorder
    found = {prefixes[node]: sorted(order[begin[node] : end[node]]) for node in range(1, trie.num_nodes)}
    assert found == nodes_of(readers)
    for node in range(1, trie.num_nodes):
        above = max((p for p in found if p == prefixes[node][: len(p)] and p != prefixes[node]), key=len, default=())
        assert prefixes[trie.parent[node]] == above
        assert trie.token_begin[node] == len(above)


@seeded_jobs
def test_segments_are_worth_the_best_choice(prompts: list[Prefix], rng: random.Random) -> None:
    trie = ext.PrefixTrie(*ragged([(*prompt, OWN_TOKEN) for prompt in prompts]), drop_last=1)
    readers = readers_of_prefixes(prompts)
    nodes = nodes_of(readers)
    reader_cost = rng.choice((0.0, 0.5, 2.0))
    for levels in (None, 1):
        segments = ext.choose_segments(trie, levels, reader_cost=reader_cost)
        parent, token_end = segments.parent.tolist(), segments.token_end.tolist()
        num_links = 0
        for request, deepest in enumerate(segments.request_segment.tolist()):
            position = token_end[deepest] if deepest >= 0 else 0
            while deepest >= 0:
                owner = prompts[segments.owner_request[deepest]]
                assert segments.token_end[deepest] == position
                assert owner[:position] == prompts[request][:position]
                position = int(segments.token_begin[deepest])
                deepest = parent[deepest]
                num_links += 1
            assert position == 0
        value = segments.saved_tokens - reader_cost * num_links
        if len(nodes) <= 5:
            assert value == best_value(prompts, nodes, reader_cost, levels is None), (prompts, reader_cost)
        elif levels is None and reader_cost == 0.0:
            assert value == sum(map(len, prompts)) - len(readers)


def model_order(segments: ext.Segments, own: list[int], output: list[int], order: str) -> list[int]:
    """The definition in group_order.h, recursively."""
    children = defaultdict(list)
    for segment, above in enumerate(segments.parent.tolist()):
        children[above].append((segment, None))
    for request, above in enumerate(segments.request_segment.tolist()):
        children[above].append((None, request))
    num_tokens = (segments.token_end - segments.token_begin).tolist()

    def walk(parent: int) -> tuple[int, int, list[int]]:
        """Decode tokens, prefill tokens and requests below, in order."""
        below = [
            walk(segment) if request is None else (output[request], own[request], [request])
            for segment, request in children[parent]
        ]
        decode, prefill = sum(child[0] for child in below), sum(child[1] for child in below)
        below.sort(key=lambda child: min(child[2]) if order == "arrival" else -child[0] / child[1])
        if order == "blend":
            sorted_below, below = below, []
            decode_taken = prefill_taken = 0
            while sorted_below:
                next_one = sorted_below.pop(0 if decode_taken * prefill <= decode * prefill_taken else -1)
                decode_taken, prefill_taken = decode_taken + next_one[0], prefill_taken + next_one[1]
                below.append(next_one)
        requests = [request for child in below for request in child[2]]
        return decode, prefill + (num_tokens[parent] if parent >= 0 else 0), requests

    return walk(-1)[2]


@seeded_jobs
def test_groups_follow_each_other_as_defined(prompts: list[Prefix], rng: random.Random) -> None:
    whole = [(*prompt, OWN_TOKEN) for prompt in prompts]
    segments = ext.choose_segments(ext.PrefixTrie(*ragged(whole), drop_last=1), rng.choice((None, 1)))
    output = [rng.randint(1, 4) for _ in prompts]
    covered = [0 if segment < 0 else int(segments.token_end[segment]) for segment in segments.request_segment]
    own = [len(prompt) - held for prompt, held in zip(whole, covered, strict=True)]
    order = rng.choice(("decode_first", "arrival", "blend"))
    planner = make_planner(
        whole, output, 64, segments=segments, expected_output_tokens=np.array(output, np.int32), order=order
    )
    assert planner.order.tolist() == model_order(segments, own, output, order), (prompts, output, order)
