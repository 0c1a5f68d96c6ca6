"""choose_segments against searches over every choice; the paper's pass against the paper's figures."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import numpy as np
import pytest

import batchllm_ext as ext
from tests.planner.replay import ragged

Prefix = tuple[int, ...]


def random_prompts(seed: int) -> list[list[int]]:
    """Small tries with nested prefixes, duplicates, empty rows, rows that end at inner nodes, and loners."""
    rng = random.Random(seed)
    prompts: list[list[int]] = []
    for _ in range(rng.randint(1, 10)):
        base = rng.choice(prompts) if prompts and rng.random() < 0.7 else []
        head = base[: rng.randint(0, len(base))]
        prompts.append(head + [rng.randint(0, 2) for _ in range(rng.randint(0, 5))])
    return prompts


def shared_prefixes(prompts: list[list[int]]) -> list[Prefix]:
    """Where prompts part or end with at least two readers: the only prefixes worth choosing."""
    trie = ext.PrefixTrie(*ragged(prompts))
    first = trie.order[trie.request_begin]
    return [tuple(prompts[first[node]][: trie.token_end[node]]) for node in range(1, trie.num_nodes)]


def choices(prefixes: list[Prefix]) -> Iterator[tuple[Prefix, ...]]:
    for size in range(len(prefixes) + 1):
        yield from itertools.combinations(prefixes, size)


def chain(prompt: list[int], chosen: tuple[Prefix, ...]) -> list[Prefix]:
    return sorted((prefix for prefix in chosen if tuple(prompt[: len(prefix)]) == prefix), key=len)


def best_single_level(prompts: list[list[int]], reader_cost: float) -> float:
    def value(chosen: tuple[Prefix, ...]) -> float:
        saved = [max([0, *(len(p) - reader_cost for p in chain(prompt, chosen))]) for prompt in prompts]
        return sum(saved) - sum(len(prefix) for prefix in chosen)

    return max(value(chosen) for chosen in choices(shared_prefixes(prompts)))


def best_any_depth(prompts: list[list[int]], reader_cost: float) -> float:
    def value(chosen: tuple[Prefix, ...]) -> float:
        links = [chain(list(prefix), chosen) for prefix in chosen]  # each ends in the prefix itself
        computed = sum(len(link[-1]) - (len(link[-2]) if len(link) > 1 else 0) for link in links)
        chains = [chain(prompt, chosen) for prompt in prompts]
        saved = sum(len(link[-1]) for link in chains if link)
        return saved - computed - reader_cost * sum(len(link) for link in chains)

    return max(value(chosen) for chosen in choices(shared_prefixes(prompts)))


def chain_of(segments: ext.Segments, request: int) -> list[int]:
    links = []
    segment = int(segments.request_segment[request])
    while segment >= 0:
        links.insert(0, segment)
        segment = int(segments.parent[segment])
    return links


def check(segments: ext.Segments, prompts: list[list[int]]) -> None:
    """A forest whose segments hold the tokens of their readers, and whose counts are right."""
    num_readers = np.zeros(segments.num_segments, np.int32)
    covered = 0
    for request, prompt in enumerate(prompts):
        position = 0
        for segment in chain_of(segments, request):
            begin, end = int(segments.token_begin[segment]), int(segments.token_end[segment])
            owner = prompts[segments.owner_request[segment]]
            assert begin == position < end <= len(prompt)
            assert owner[begin:end] == prompt[begin:end]
            num_readers[segment] += 1
            position = end
        covered += position
    assert np.array_equal(segments.num_readers, num_readers)
    assert (num_readers >= 2).all(), "no segment for one reader"
    assert segments.saved_tokens == covered - int((segments.token_end - segments.token_begin).sum())
    assert segments.prompt_tokens == sum(map(len, prompts))
    assert (segments.parent < np.arange(segments.num_segments)).all()


def value_of(segments: ext.Segments, reader_cost: float) -> float:
    links = sum(len(chain_of(segments, request)) for request in range(len(segments.request_segment)))
    return segments.saved_tokens - reader_cost * links


def choose(prompts: list[list[int]], levels: int | None, **options: object) -> ext.Segments:
    segments = ext.choose_segments(ext.PrefixTrie(*ragged(prompts)), levels, **options)
    check(segments, prompts)
    return segments


NUM_TRIES = 3000
MAX_NODES = 8  # 2 ** 8 choices


@pytest.mark.parametrize("reader_cost", [0.0, 0.25, 0.5, 1.0, 2.75])
def test_choices_are_exact_optima(reader_cost: float) -> None:
    num_tries = NUM_TRIES if reader_cost in (0.0, 0.5) else NUM_TRIES // 10
    num_chains = 0
    for seed in range(num_tries):
        prompts = random_prompts(seed)
        if len(shared_prefixes(prompts)) > MAX_NODES:
            continue
        single_optimum = best_single_level(prompts, reader_cost)
        optimum = max(single_optimum, best_any_depth(prompts, reader_cost))
        single = choose(prompts, 1, reader_cost=reader_cost)
        best = choose(prompts, None, reader_cost=reader_cost)
        assert value_of(single, reader_cost) == single_optimum, (seed, prompts)
        assert (single.parent == -1).all()
        assert value_of(best, reader_cost) == optimum, (seed, prompts)
        num_chains += bool((best.parent >= 0).any())
    assert num_chains > num_tries // 20 or reader_cost > 0.5, "too few tries where depth matters"


def test_a_single_level_can_beat_chains_that_cost_their_readers() -> None:
    # One chain: 2 segments for each of 4 readers. Apart: 1 segment each, the shared token is computed twice.
    prompts = [[1, 2, 2, 2]] * 2 + [[1, 3, 3, 3]] * 2
    assert choose(prompts, None, reader_cost=0.0).parent.tolist() == [-1, 0, 0]
    assert choose(prompts, None, reader_cost=0.5).parent.tolist() == [-1, -1]


def test_equal_choices_share_less() -> None:
    # Two readers of one token gain 1 token and pay 2 * 0.5.
    assert choose([[1], [1]], None, reader_cost=0.5).num_segments == 0
    assert choose([[1], [1]], None, reader_cost=0.499).num_segments == 1
    # Choosing the inner prefix for the one reader that ends there gains nothing.
    assert choose([[1], [1, 2], [1, 2]], 1).token_end.tolist() == [2]


def test_no_levels_share_nothing() -> None:
    segments = choose([[1, 2]] * 3, 0)
    assert segments.num_segments == 0
    assert segments.request_segment.tolist() == [-1, -1, -1]
    assert segments.saved_tokens == 0


def test_an_enormous_reader_cost_shares_nothing() -> None:
    for reader_cost in (3.0, 1e300, float("inf")):
        assert choose([[1, 2, 3]] * 5, None, reader_cost=reader_cost).num_segments == 0


def document_job(num_groups: int, degree: int, prefix: int, own: int) -> tuple[np.ndarray, np.ndarray]:
    """num_groups * degree prompts of prefix + own random tokens, shuffled."""
    rng = np.random.default_rng(7)
    num_prompts = num_groups * degree
    tokens = rng.integers(0, 32_000, (num_prompts, prefix + own), np.int32)
    tokens[:, :prefix] = np.repeat(rng.integers(0, 32_000, (num_groups, prefix), np.int32), degree, axis=0)
    rng.shuffle(tokens)
    return tokens.reshape(-1), np.arange(num_prompts + 1, dtype=np.int64) * (prefix + own)


@pytest.mark.parametrize(("levels", "method"), [(1, "paper"), (None, "paper"), (1, "exact"), (None, "exact")])
def test_papers_microbenchmark_saves_85_percent(levels: int | None, method: str) -> None:
    trie = ext.PrefixTrie(*document_job(400, 16, 2000, 200), drop_last=1)
    segments = ext.choose_segments(trie, levels, method=method)
    assert round(100 * segments.saved_tokens / segments.prompt_tokens, 1) == 85.2
    assert (segments.num_readers == 16).sum() >= 400


def test_papers_pass_never_beats_the_exact_single_level() -> None:
    num_worse = 0
    for seed in range(NUM_TRIES):
        prompts = random_prompts(seed)
        paper = choose(prompts, None, method="paper")
        exact = choose(prompts, 1)
        assert (paper.parent == -1).all()
        assert 0 <= paper.saved_tokens <= exact.saved_tokens, (seed, prompts)
        num_worse += paper.saved_tokens < exact.saved_tokens
    assert 0 < num_worse < NUM_TRIES // 4


def paper_groups(prompts: list[list[int]]) -> set[Prefix]:
    """The published pass on a tree of dictionaries: its prefixes with at least two readers."""

    class Node:
        def __init__(self, tokens: Prefix) -> None:
            self.tokens = tokens
            self.children: list[Node] = []
            self.num_ends = 0  # leaves: prompts that end here, or go on alone

        def leaves(self) -> int:
            return self.num_ends + sum(child.leaves() for child in self.children)

    trie = ext.PrefixTrie(*ragged(prompts))
    first = trie.order[trie.request_begin].tolist()
    nodes = [
        Node(tuple(prompts[first[node]][trie.token_begin[node] : trie.token_end[node]]))
        for node in range(trie.num_nodes)
    ]
    for node in range(trie.num_nodes):
        nodes[node].num_ends += int(trie.request_end[node] - trie.request_begin[node])
        if node > 0:
            nodes[trie.parent[node]].children.append(nodes[node])
            nodes[trie.parent[node]].num_ends -= int(trie.request_end[node] - trie.request_begin[node])

    def enlarge(node: Node) -> None:
        for child in list(node.children):
            enlarge(child)
            for grandchild in list(child.children):
                if (grandchild.leaves() - 1) * len(grandchild.tokens) > len(child.tokens):
                    child.children.remove(grandchild)
                    grandchild.tokens = child.tokens + grandchild.tokens
                    node.children.append(grandchild)
            if len(child.children) + child.num_ends > 1:
                continue
            node.children.remove(child)
            node.num_ends += child.num_ends
            for last in child.children:
                last.tokens = child.tokens + last.tokens
                node.children.append(last)

    enlarge(nodes[0])
    return {child.tokens for child in nodes[0].children}


def test_papers_pass_is_the_published_one() -> None:
    for seed in range(NUM_TRIES):
        prompts = random_prompts(seed)
        segments = choose(prompts, 1, method="paper")
        chosen = {
            tuple(prompts[owner][:end])
            for owner, end in zip(segments.owner_request.tolist(), segments.token_end.tolist(), strict=True)
        }
        assert chosen == paper_groups(prompts), (seed, prompts)


def test_nested_prompts_are_solved_quickly() -> None:
    # A caterpillar of 5,000 nodes, each with a branch of its own: the case where tables are quadratic.
    prompts = []
    for length in range(1, 5001, 2):
        prompts += [[7] * length, [7] * length + [length % 5, 1, 1, 1], [7] * length + [length % 5, 1, 1, 1]]
    trie = ext.PrefixTrie(*ragged(prompts))
    any_depth = ext.choose_segments(trie)
    assert any_depth.saved_tokens == any_depth.prompt_tokens - trie.num_tokens
    assert 0 < ext.choose_segments(trie, 1).saved_tokens < any_depth.saved_tokens
    assert 0 < ext.choose_segments(trie, method="paper").saved_tokens < any_depth.saved_tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 2}, r"levels: expected None \(any depth\), 1 or 0, got 2"),
        ({"levels": -1}, r"levels: expected None \(any depth\), 1 or 0, got -1"),
        ({"method": "best"}, 'method: expected "exact" or "paper", got "best"'),
        ({"method": "paper", "levels": 0}, 'levels: method "paper" has a single level; expected None or 1, got 0'),
        ({"method": "paper", "reader_cost": 1.0}, 'reader_cost: method "paper" knows none'),
        ({"reader_cost": -1.0}, "reader_cost: expected at least 0 tokens, got -1"),
        ({"reader_cost": float("nan")}, "reader_cost: expected at least 0 tokens, got nan"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ext.choose_segments(ext.PrefixTrie(*ragged([[1]])), **options)


def segments_of(**changes: list[int]) -> ext.Segments:
    arrays = {
        "parent": [-1, 0],
        "token_begin": [0, 2],
        "token_end": [2, 5],
        "owner_request": [0, 1],
        "request_segment": [0, 1, 1, -1],
    }
    arrays.update(changes)
    return ext.Segments(**{name: np.array(values, np.int32) for name, values in arrays.items()})


def test_segments_from_arrays_count_readers_and_savings() -> None:
    segments = segments_of()
    assert segments.num_readers.tolist() == [3, 2]
    assert segments.saved_tokens == (2 + 5 + 5) - (2 + 3)
    assert segments.prompt_tokens == 0
    assert "2 shared by 4 requests" in str(segments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_end": [2]}, "token_end: expected one entry for each of the 2 segments in parent, got 1"),
        ({"token_begin": [0, 1]}, r"token_begin\[1\]: expected 2, where its parent ends, got 1"),
        ({"token_begin": [1, 2]}, r"token_begin\[0\]: expected 0, where its parent ends, got 1"),
        ({"token_end": [2, 2]}, r"token_end\[1\]: expected more than token_begin 2, got 2"),
        ({"parent": [-1, 1]}, r"parent\[1\]: expected -1 to 0, got 1"),
        ({"parent": [-2, 0]}, r"parent\[0\]: expected -1 to -1, got -2"),
        ({"owner_request": [0, 4]}, r"owner_request\[1\]: expected 0 to 3, got 4"),
        ({"request_segment": [0, 1, 2, -1]}, r"request_segment\[2\]: expected -1 to 1, got 2"),
    ],
)
def test_wrong_segments_are_named(changes: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segments_of(**changes)
