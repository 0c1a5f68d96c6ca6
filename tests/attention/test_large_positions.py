"""Positions and sizes near 2^31: what int32 can hold is right to the bit, and what it cannot hold is a named error."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import batchllm_ext as ext

LAST = 2**31 - 1
HEADS = {"num_qo_heads": 4, "num_kv_heads": 2, "head_dim": 16}


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def two_spans(first_position: int, num_rows: int) -> dict[str, np.ndarray]:
    """A shared segment of 600 tokens, then two spans of `num_rows` rows, each at the end of a segment of its own."""
    own = 30 + num_rows
    return {
        "span_indptr": ints(0, num_rows, 2 * num_rows),
        "span_begin": ints(*[first_position + 630] * 2),
        "link_indptr": ints(0, 2, 4),
        "link_segment": ints(0, 1, 0, 2),
        "segment_page_indptr": ints(0, 38, 38 + 10, 38 + 20),
        "segment_page_ids": np.random.default_rng(0).permutation(58).astype(np.int32),
        "segment_begin": ints(first_position, first_position + 600, first_position + 600),
        "segment_num_tokens": ints(600, own, own),
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("window_left", [-1, 40, LAST])
@pytest.mark.parametrize("num_rows", [1, 7, 100])
def test_attention_does_not_depend_on_where_positions_begin(num_rows: int, window_left: int, dtype: str):
    rng = np.random.default_rng(1)
    shapes = (2 * num_rows, 4, 16), (58, 16, 2, 16), (58, 16, 2, 16)
    tensors = [rng.standard_normal(shape, np.float32) for shape in shapes]
    if dtype == "bfloat16":
        tensors = [(tensor.view(np.uint32) >> 16).astype(np.uint16) for tensor in tensors]
    results, references = [], []
    for first_position in (0, LAST - 630 - num_rows):
        batch = two_spans(first_position, num_rows)
        plan = ext.plan_attention(
            **batch, **HEADS, page_size=16, num_threads=2, window_left=window_left, share="always"
        )
        results.append(ext.attention(plan, *tensors, dtype=dtype, num_threads=2))
        references.append(ext.attention_ref(*batch.values(), *tensors, dtype=dtype, window_left=window_left))
    for near_zero, near_the_last in [*zip(*results, strict=True), *zip(*references, strict=True)]:
        assert np.array_equal(near_zero, near_the_last)
    assert np.abs(results[1][1] - references[1][1]).max() < 2e-2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("num_keys", [LAST - 70, LAST - 64, LAST - 1])
@pytest.mark.parametrize("num_threads", [1, 3, 1000])
def test_items_cover_all_keys_that_int32_can_count(num_keys: int, num_threads: int, device: str):
    batch = {
        "span_indptr": ints(0, 1),
        "span_begin": ints(num_keys - 1),
        "link_indptr": ints(0, 1),
        "link_segment": ints(0),
        "segment_page_indptr": ints(0, 2),
        "segment_page_ids": ints(0, 1),
        "segment_begin": ints(0),
        "segment_num_tokens": ints(num_keys),
    }
    plan = ext.plan_attention(**batch, **HEADS, page_size=2**30, num_threads=num_threads, device=device)
    ranges = sorted(plan.buffers["items"][:, 4:].tolist())
    assert (ranges[0][0], ranges[-1][1]) == (0, num_keys)
    assert all(begin < end for begin, end in ranges)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))
    assert plan.explain()["kv_tokens_read"] == num_keys
    assert all(seconds > 0 for ways in plan.explain()["predicted_seconds"].values() for seconds in ways.values())


@pytest.mark.parametrize("window_left", [0, 5, 300])
def test_a_window_at_the_end_of_all_keys_reads_the_last_ones(window_left: int):
    """2^31 - 2 keys in pages that are all one, but the last two; the rows see the last two only."""
    rng = np.random.default_rng(2)
    page_size = 2**12
    num_pages = 2**31 // page_size
    k_pages, v_pages = rng.standard_normal((2, 3, page_size, 1, 8), np.float32)
    q = rng.standard_normal((3, 2, 8), np.float32)
    page_ids = np.zeros(num_pages, np.int32)
    page_ids[-2:] = 1, 2
    batch = {
        "span_indptr": ints(0, 3),
        "span_begin": ints(LAST - 4),
        "link_indptr": ints(0, 1),
        "link_segment": ints(0),
        "segment_page_indptr": ints(0, num_pages),
        "segment_page_ids": page_ids,
        "segment_begin": ints(0),
        "segment_num_tokens": ints(LAST - 1),
    }
    plan = ext.plan_attention(
        **batch, num_qo_heads=2, num_kv_heads=1, head_dim=8, page_size=page_size, window_left=window_left, num_threads=2
    )
    out, lse = ext.attention(plan, q, k_pages, v_pages)
    k, v = (np.concatenate(pages[1:])[:, 0].astype(np.float64) for pages in (k_pages, v_pages))
    for row in range(3):
        end = 2 * page_size - 5 + row  # the last of all keys would be at 2 * page_size - 1
        keys = slice(end - window_left, end + 1)
        scores = np.exp(k[keys] @ q[row].T / np.sqrt(8))
        np.testing.assert_allclose(lse[row], np.log(scores.sum(axis=0)), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(out[row], (scores / scores.sum(axis=0)).T @ v[keys], rtol=1e-4, atol=1e-5)


def test_sizes_that_int32_cannot_hold_are_named():
    batch = two_spans(0, 1)
    tensors = {"q": np.ones((2, 4, 16), np.float32)}
    rows = np.ones(16, np.float32)

    def strided(*shape: int) -> np.ndarray:  # a last dimension of unit stride, the others of none
        return np.lib.stride_tricks.as_strided(rows, shape, (0,) * (len(shape) - 1) + (4,))

    for name in ("k_pages", "v_pages"):
        tensors[name] = strided(58, 2**31, 2, 16)
    with pytest.raises(ValueError, match=re.escape("k_pages: page_size: expected at most 2^31 - 1, got 2147483648")):
        ext.attention_ref(**batch, **tensors)
    for name in ("k_pages", "v_pages"):
        tensors[name] = strided(58, 16, 2**33 + 2, 16)
    with pytest.raises(ValueError, match=re.escape("k_pages: num_kv_heads: expected at most 2^31 - 1, got 8589934594")):
        ext.attention_ref(**batch, **tensors)
    one_span = {"span_indptr": ints(0, 2**24), "span_begin": ints(0)}
    links = {"link_indptr": ints(0, 5), "link_segment": ints(0, 0, 0, 0, 0)}
    with pytest.raises(ValueError, match=re.escape("link_indptr: expected at most 67108864 pairs of a row and a link")):
        ext.plan_attention(**(batch | one_span | links), **HEADS, page_size=16)
    logits = np.lib.stride_tricks.as_strided(rows, (1, 2**31), (4, 4))
    with pytest.raises(ValueError, match=re.escape("logits: expected at most 2^31 - 1 tokens")):
        ext.argmax_and_lse(logits, token_ids=np.zeros(1, np.int32), lse=np.zeros(1, np.float32))


@pytest.mark.parametrize("name", ["span_begin", "link_segment", "segment_begin", "segment_page_ids"])
def test_arrays_that_int32_cannot_index_are_named(name: str, tmp_path: Path):
    file = tmp_path / "zeros"
    with file.open("wb") as zeros:  # with a hole
        zeros.truncate(4 * 2**31)
    array = np.memmap(file, np.int32, "r")
    with pytest.raises(ValueError, match=f"{name}: expected at most 2147483647 elements, got 2147483648"):
        ext.plan_attention(**(two_spans(0, 1) | {name: array}), **HEADS, page_size=16)


def test_any_number_of_rows_without_elements_is_nothing_to_do():
    empty = np.zeros((2**40, 0), np.float32)
    ext.rms_norm(empty, np.zeros(0, np.float32), eps=1e-5, out=empty)
    ext.silu_and_mul(empty, out=empty)
    ext.rotate(empty[:, None], empty, empty)
