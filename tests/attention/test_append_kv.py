"""append_kv writes each token's K and V into its slot, and nothing else."""

import numpy as np
import pytest

import batchllm_ext
from tests.attention.test_tensors import OnlyDLPack

NUM_TOKENS, NUM_PAGES, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM = 300, 40, 16, 3, 20


def make(dtype=np.float32):
    rng = np.random.default_rng(0)
    k, v = (rng.standard_normal((NUM_TOKENS, NUM_KV_HEADS, HEAD_DIM)).astype(np.float32) for _ in range(2))
    slots = rng.permutation(NUM_PAGES * PAGE_SIZE)[:NUM_TOKENS].astype(np.int64)
    if dtype == np.uint16:
        k, v = k.view(np.uint16)[..., ::2].copy(), v.view(np.uint16)[..., ::2].copy()
    if dtype == np.float16:
        k, v = k.astype(np.float16), v.astype(np.float16)
    return k, v, slots


def pages(layout: str, dtype) -> np.ndarray:
    if layout == "plain":
        return np.zeros((NUM_PAGES, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM), dtype)
    if layout == "heads_first":
        return np.zeros((NUM_PAGES, NUM_KV_HEADS, PAGE_SIZE, HEAD_DIM), dtype).transpose(0, 2, 1, 3)
    return np.zeros((NUM_PAGES, PAGE_SIZE + 2, NUM_KV_HEADS + 1, HEAD_DIM + 5), dtype)[:, 1:-1, :-1, 2:-3]


@pytest.mark.parametrize("num_threads", [0, 1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.float16], ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layout", ["plain", "heads_first", "strided"])
def test_every_token_is_written_to_its_slot_and_nothing_else(layout: str, dtype, num_threads: int):
    k, v, slots = make(dtype)
    k_pages, v_pages = pages(layout, dtype), pages("plain", dtype)
    batchllm_ext.append_kv(k, v, slots, k_pages, v_pages, num_threads=num_threads)
    for tokens, written in ((k, k_pages), (v, v_pages)):
        expected = np.zeros((NUM_PAGES * PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM), dtype)
        expected[slots] = tokens
        assert (written.reshape(expected.shape) == expected).all()
        if written.base is not None:
            assert np.count_nonzero(written.base) == np.count_nonzero(expected)


def test_tokens_may_be_strided_and_read_only():
    k, v, slots = make()
    both = np.stack([k, v], axis=1)  # [num_tokens, 2, num_kv_heads, head_dim]: a fused projection
    both.flags.writeable = False
    k_pages, v_pages = pages("plain", np.float32), pages("plain", np.float32)
    batchllm_ext.append_kv(both[:, 0], both[:, 1], slots, k_pages, v_pages)
    assert (v_pages.reshape(-1, NUM_KV_HEADS, HEAD_DIM)[slots] == v).all()
    assert (k_pages.reshape(-1, NUM_KV_HEADS, HEAD_DIM)[slots] == k).all()


def test_no_tokens_are_nothing_to_write():
    tokens, slots = np.ones((0, NUM_KV_HEADS, HEAD_DIM), np.float32), np.arange(0)
    k_pages, v_pages = pages("plain", np.float32), pages("plain", np.float32)
    batchllm_ext.append_kv(tokens, OnlyDLPack(tokens), slots, k_pages, v_pages)
    assert not k_pages.any()
    assert not v_pages.any()


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    k, v, slots = (torch.from_numpy(x) for x in make())
    k_pages = torch.zeros(NUM_PAGES, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM, dtype=torch.bfloat16)
    v_pages = torch.zeros_like(k_pages)
    batchllm_ext.append_kv(k.bfloat16(), v.bfloat16(), slots, k_pages, v_pages)
    assert torch.equal(k_pages.flatten(0, 1)[slots], k.bfloat16())
    assert torch.equal(v_pages.flatten(0, 1)[slots], v.bfloat16())


def test_mistakes_are_named():
    k, v, slots = make()
    k_pages, v_pages = pages("plain", np.float32), pages("plain", np.float32)

    def expect(message: str, error: type[Exception] = ValueError, **changed) -> None:
        arguments = {"k": k, "v": v, "slots": slots, "k_pages": k_pages, "v_pages": v_pages} | changed
        with pytest.raises(error, match=message):
            batchllm_ext.append_kv(**arguments)

    for slot in (-1, NUM_PAGES * PAGE_SIZE):
        expect(
            rf"slots\[7\]: expected a value in \[0, 640\), got {slot}",
            slots=np.where(np.arange(NUM_TOKENS) == 7, slot, slots),
        )
    expect("slots: num_tokens is 299, but k has 300", slots=slots[1:])
    expect("slots: expected int64, got int32", TypeError, slots=slots.astype(np.int32))
    expect("v: head_dim is 19, but k has 20", v=v[..., 1:])
    expect("k_pages: expected float32, got uint16", TypeError, k_pages=pages("plain", np.uint16))
    expect("v_pages: num_pages is 39, but k_pages has 40", v_pages=v_pages[1:])
    expect("k: expected stride 1 in its last dimension, got -1", k=k[..., ::-1])
    read_only = v_pages.view()
    read_only.flags.writeable = False
    expect("v_pages: expected a writable tensor, got a read-only one", v_pages=read_only)
    assert not k_pages.any()
    assert not v_pages.any()
