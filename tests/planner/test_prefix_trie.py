"""PrefixTrie against a trie of Python dictionaries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchllm_ext as ext
from tests.planner.replay import ragged

# Few distinct tokens, short rows: prefixes, duplicates, empty rows and rows that end at inner nodes are common.
rows = st.lists(st.lists(st.integers(-1, 2), max_size=6), max_size=12)


def readers_of_prefixes(prompts: list[list[int]]) -> dict[tuple[int, ...], set[int]]:
    readers: dict[tuple[int, ...], set[int]] = {(): set(range(len(prompts)))}
    for request, prompt in enumerate(prompts):
        for end in range(1, len(prompt) + 1):
            readers.setdefault(tuple(prompt[:end]), set()).add(request)
    return readers


def nodes_of(trie: ext.PrefixTrie, prompts: list[list[int]]) -> dict[tuple[int, ...], set[int]]:
    """prefix at the end of a node -> its readers"""
    nodes = {}
    for node in range(trie.num_nodes):
        readers = trie.order[trie.request_begin[node] : trie.request_end[node]].tolist()
        prefix = tuple(prompts[readers[0]][: trie.token_end[node]]) if readers else ()
        nodes[prefix] = set(readers)
    return nodes


@given(rows)
def test_nodes_are_the_maximal_shared_prefixes(prompts: list[list[int]]) -> None:
    trie = ext.PrefixTrie(*ragged(prompts))
    trie.audit()
    readers = readers_of_prefixes(prompts)
    longer = {(prefix[:-1], frozenset(readers[prefix])) for prefix in readers if prefix}
    expected = {
        prefix: ids
        for prefix, ids in readers.items()
        if not prefix or (len(ids) >= 2 and (prefix, frozenset(ids)) not in longer)
    }
    assert nodes_of(trie, prompts) == expected
    assert trie.num_tokens == len(readers) - 1


@given(rows)
def test_ranks_are_lexicographic_and_equal_prompts_keep_their_order(prompts: list[list[int]]) -> None:
    trie = ext.PrefixTrie(*ragged(prompts))
    assert trie.order.tolist() == sorted(range(len(prompts)), key=lambda request: (prompts[request], request))


@given(rows, st.integers(0, 3))
def test_drop_last_is_a_trie_over_shorter_rows(prompts: list[list[int]], drop_last: int) -> None:
    shorter = [prompt[: max(len(prompt) - drop_last, 0)] for prompt in prompts]
    dropped = ext.PrefixTrie(*ragged(prompts), drop_last=drop_last)
    expected = ext.PrefixTrie(*ragged(shorter))
    dropped.audit()
    for name in ("order", "parent", "token_begin", "token_end", "request_begin", "request_end"):
        assert np.array_equal(getattr(dropped, name), getattr(expected, name)), name
    assert dropped.num_tokens == expected.num_tokens


def test_a_chain_of_nested_prompts_is_as_deep_as_it_is_long() -> None:
    prompts = [[7] * length for length in range(1, 3001)]
    trie = ext.PrefixTrie(*ragged(prompts))
    trie.audit()
    assert trie.num_nodes == 3000  # the root, and one node at each length but the last
    assert trie.num_tokens == 3000
    assert trie.parent.tolist() == [-1, *range(2999)]


def test_arrays_are_read_only_and_outlive_the_trie() -> None:
    order = ext.PrefixTrie(*ragged([[1, 2], [1], [0]])).order
    assert order.tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match="read-only"):
        order[0] = 1


def test_an_empty_job_has_a_root() -> None:
    trie = ext.PrefixTrie(*ragged([]))
    trie.audit()
    assert (trie.num_requests, trie.num_nodes, trie.num_tokens) == (0, 1, 0)


def test_str_draws_the_tree() -> None:
    text = str(ext.PrefixTrie(*ragged([[5, 7, 2], [5, 7], [9, 1], [5, 7, 2, 8]])))
    assert text.splitlines() == [
        "PrefixTrie: 4 requests, 3 nodes, 6 of 11 tokens stored",
        "  5 7 (3 readers)",
        "    2 (2 readers)",
    ]
    many = ext.PrefixTrie(*ragged([[i] for i in range(100)] * 2))
    assert str(many).endswith("... and 60 more nodes\n")


TOKENS, INDPTR = ragged([[1, 2], [3]])


@pytest.mark.parametrize(
    ("tokens", "indptr", "error", "message"),
    [
        ([1, 2, 3], INDPTR, TypeError, "tokens: expected an array with the buffer protocol or __dlpack__, got list"),
        (TOKENS.astype(np.int64), INDPTR, TypeError, "tokens: expected int32, got int64"),
        (TOKENS.astype(">i4"), INDPTR, TypeError, "tokens: expected int32, got format '>i'"),
        (TOKENS, INDPTR * 1.0, TypeError, "indptr: expected int64 or int32, got float64"),
        (TOKENS[None], INDPTR, ValueError, "tokens: expected 1 dimension, got 2"),
        (np.repeat(TOKENS, 2)[::2], INDPTR, ValueError, "tokens: expected stride 1 in its last dimension, got 2"),
        (TOKENS, INDPTR[:0], ValueError, r"indptr: expected num_requests \+ 1 entries, got none"),
        (TOKENS, INDPTR + 1, ValueError, r"indptr\[0\]: expected 0, got 1"),
        (TOKENS, np.array([0, 3, 2]), ValueError, "indptr decreases at entry 2"),
        (TOKENS, np.array([0, 2]), ValueError, "indptr: the last entry is 2, but tokens has 3 entries"),
        (TOKENS[:0], np.array([0, 1 << 31]), ValueError, "prompt 0 is longer"),
    ],
)
def test_wrong_arrays_are_named(tokens: object, indptr: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ext.PrefixTrie(tokens, indptr)


def test_a_negative_drop_last_is_refused() -> None:
    with pytest.raises(ValueError, match="drop_last: expected at least 0, got -1"):
        ext.PrefixTrie(TOKENS, INDPTR, drop_last=-1)
