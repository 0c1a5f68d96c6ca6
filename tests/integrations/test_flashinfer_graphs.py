"""FlashInfer's wrappers with use_cuda_graph on a CPU: what plan() leaves in the buffers, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from batchllm.integrations import flashinfer
from tests.integrations.flashinfer_batch import Batch, check, reference
from tests.reference import assert_close

WORKSPACE = torch.empty(0, dtype=torch.uint8)
REQUESTS = [(1, 9), (1, 5), (1, 0), (1, 30)]
UNTOUCHED = -7


def buffer(size: int) -> torch.Tensor:
    return torch.full((size,), UNTOUCHED, dtype=torch.int32)


def decode_buffers(batch_size: int = 4, num_pages: int = 40) -> list[torch.Tensor]:
    return [buffer(batch_size + 1), buffer(num_pages), buffer(batch_size)]


def decode_wrapper(buffers: list[torch.Tensor]) -> flashinfer.BatchDecodeWithPagedKVCacheWrapper:
    names = ("paged_kv_indptr_buffer", "paged_kv_indices_buffer", "paged_kv_last_page_len_buffer")
    return flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        WORKSPACE, use_cuda_graph=True, **dict(zip(names, buffers, strict=True))
    )


def decode_arrays(batch: Batch) -> list[torch.Tensor]:
    return [of_levels[0] for of_levels in batch.index_arrays][1:]


def assert_holds(buffers: list[torch.Tensor], arrays: list[torch.Tensor]) -> None:
    for held, array in zip(buffers, arrays, strict=True):
        assert torch.equal(held[: len(array)], array)
        assert (held[len(array) :] == UNTOUCHED).all()


@pytest.mark.parametrize(
    "make",
    [decode_wrapper, lambda buffers: flashinfer.CUDAGraphBatchDecodeWithPagedKVCacheWrapper(WORKSPACE, *buffers)],
)
def test_a_decode_writes_each_plan_into_the_buffers(make):
    buffers = decode_buffers()
    wrapper = make(buffers)
    assert wrapper.is_cuda_graph_enabled
    for requests in ([(1, 9), (1, 5), (1, 0), (1, 3)], [(1, 30), (1, 9), (1, 2), (1, 7)]):
        batch = Batch([requests])
        wrapper.plan(*decode_arrays(batch), *batch.heads)
        assert_holds(buffers, decode_arrays(batch))
        check(wrapper.run(torch.from_numpy(batch.q), batch.cache("NHD", whole=True), return_lse=True), reference(batch))


def test_without_use_cuda_graph_buffers_are_left_alone():
    buffers = decode_buffers()
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(WORKSPACE, paged_kv_indptr_buffer=buffers[0])
    assert not wrapper.is_cuda_graph_enabled
    batch = Batch([REQUESTS])
    wrapper.plan(*decode_arrays(batch), *batch.heads)
    assert (buffers[0] == UNTOUCHED).all()


def test_prefill_and_cascade_write_every_level():
    levels = [[(6, 40)], [(2, 3), (4, 9)]]
    for wanted in (levels[1:], levels):
        batch = Batch(wanted, page_size=2)
        buffers = [
            [buffer(len(array) + (3 if kind == 2 else 0)) for array in of_levels]
            for kind, of_levels in enumerate(batch.index_arrays)
        ]
        if len(wanted) == 1:
            names = ("qo_indptr_buf", "paged_kv_indptr_buf", "paged_kv_indices_buf", "paged_kv_last_page_len_buf")
            given = {name: of_levels[0] for name, of_levels in zip(names, buffers, strict=True)}
            wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(WORKSPACE, use_cuda_graph=True, **given)
            wrapper.plan(*[of_levels[0] for of_levels in batch.index_arrays], *batch.heads)
        else:
            wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(2, WORKSPACE, "NHD", True, *buffers)
            wrapper.plan(*batch.index_arrays, *batch.heads)
        for of_buffers, of_levels in zip(buffers, batch.index_arrays, strict=True):
            assert_holds(of_buffers, of_levels)
        out = wrapper.run(torch.from_numpy(batch.q), batch.cache("NHD", whole=True))
        assert_close("out", out.numpy(), reference(batch)[0], 2e-5)


@pytest.mark.parametrize(
    ("requests", "options", "message"),
    [
        (REQUESTS[:3], {}, "last_page_len: use_cuda_graph expects 4 requests, got 3"),
        ([(1, 160), *REQUESTS[1:]], {}, "indices: expected at most 40 page ids, as the buffer has, got 50"),
        (
            [(2, keys) for _, keys in REQUESTS],
            {"q_len_per_req": 2},
            "q_len_per_req: use_cuda_graph expects 1, .* got 2",
        ),
    ],
)
def test_a_batch_that_the_buffers_do_not_hold_is_refused_and_the_one_before_stays(requests, options, message):
    buffers = decode_buffers()
    wrapper = decode_wrapper(buffers)
    batch = Batch([REQUESTS])
    wrapper.plan(*decode_arrays(batch), *batch.heads)
    other = Batch([requests])
    with pytest.raises(ValueError, match=rf"^{message}"):
        wrapper.plan(*decode_arrays(other), *other.heads, **options)
    assert_holds(buffers, decode_arrays(batch))
    check(wrapper.run(torch.from_numpy(batch.q), batch.cache("NHD", whole=True), return_lse=True), reference(batch))


def test_no_batch_has_more_rows_than_the_first():
    names = ("qo_indptr_buf", "paged_kv_indptr_buf", "paged_kv_indices_buf", "paged_kv_last_page_len_buf")
    given = dict(zip(names, [buffer(3), buffer(3), buffer(9), buffer(2)], strict=True))
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(WORKSPACE, use_cuda_graph=True, **given)
    for rows in (3, 2, 3):
        batch = Batch([[(rows, 9), (1, 4)]])
        wrapper.plan(*[of_levels[0] for of_levels in batch.index_arrays], *batch.heads)
    batch = Batch([[(4, 9), (1, 4)]])
    with pytest.raises(
        ValueError, match=r"^plan: use_cuda_graph expects at most 4 rows, those of the first plan, got 5"
    ):
        wrapper.plan(*[of_levels[0] for of_levels in batch.index_arrays], *batch.heads)


@pytest.mark.parametrize(
    ("buffers", "message"),
    [
        ([None, buffer(9), buffer(4)], "paged_kv_indptr_buffer: use_cuda_graph expects a tensor, got NoneType"),
        ([buffer(5), None, buffer(4)], "paged_kv_indices_buffer: use_cuda_graph expects a tensor, got NoneType"),
        ([buffer(5), buffer(9), [1]], "paged_kv_last_page_len_buffer: use_cuda_graph expects a tensor, got list"),
        ([buffer(4), buffer(9), buffer(4)], "paged_kv_indptr_buffer: expected 5 elements, .*, got 4"),
    ],
)
def test_buffers_that_are_missing_or_disagree_are_refused(buffers, message):
    with pytest.raises(ValueError, match=rf"^{message}"):
        decode_wrapper(buffers)


def test_a_cascade_has_buffers_for_every_level():
    with pytest.raises(ValueError, match=r"^qo_indptr_buf_arr: expected 2 tensors, one per level, got 0"):
        flashinfer.MultiLevelCascadeAttentionWrapper(2, WORKSPACE, use_cuda_graph=True)


def test_on_a_gpu_they_are_refused():
    with pytest.raises(NotImplementedError, match=r"^use_cuda_graph: .* on a CPU only, got a workspace on meta"):
        flashinfer.CUDAGraphBatchDecodeWithPagedKVCacheWrapper(WORKSPACE.to("meta"), *decode_buffers())
