"""Other kernels for the attention of a forest: torch's (flash, cuDNN, FlexAttention) and FlashInfer's.

Each takes the K and V that it reads in the form it likes best, in copies that together exceed the L2 cache; making them
is not timed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu_day.device import DEVICE, Skip, copies, ints
from benchmarks.gpu_day.forest import PAGE_SIZE, Forest
from benchmarks.gpu_day.results import DRY

FLASHINFER_WORKSPACE_BYTES = 1 << (20 if DRY else 28)


@dataclass
class Contestant:
    """run(turn), turn < num_turns, is one call; rows() of its result is [num_rows, Hq, D]. None: it lacks a part of the
    work, so that its time is a lower bound, and its result is not compared."""

    run: Callable[[int], Tensor | tuple[Tensor, ...]]
    num_turns: int
    rows: Callable[[Tensor], Tensor] | None


def backend(name: str) -> AbstractContextManager[None]:
    return sdpa_kernel(SDPBackend.MATH if DRY else getattr(SDPBackend, name))


def dense(forest: Forest, chains: list[list[int]]) -> tuple[Tensor, Tensor]:
    """K and V [chains, Hkv, L, D] of chains of equal lengths."""
    k, v = zip(*(forest.gather(chain) for chain in chains), strict=True)
    return tuple(torch.stack(rows).transpose(1, 2).contiguous() for rows in (k, v))


def grouped_q(forest: Forest) -> Tensor:
    """[num_rows, Hkv, Hq / Hkv, D]: the query heads of one KV head are rows of one product."""
    return forest.q.unflatten(1, (forest.num_kv_heads, -1))


def sdpa_decode(forest: Forest, name: str) -> Contestant:
    """Every request reads its whole chain."""
    q, kv = grouped_q(forest), copies(*dense(forest, forest.chains))

    def run(turn: int) -> Tensor:
        with backend(name):
            return scaled_dot_product_attention(q, *kv[turn])

    return Contestant(run, len(kv), lambda out: out.flatten(1, 2))


def sdpa_cascade(forest: Forest) -> Contestant:
    """A flash kernel for the prefixes and one for own parts, without the merge: no cascade of these is faster."""
    if not forest.prefixes:
        raise Skip("there is no prefix")
    shape, q = forest.shape, grouped_q(forest)
    shared_q = q.unflatten(0, (shape.groups, shape.readers)).transpose(1, 2).flatten(2, 3).contiguous()
    own = dense(forest, [chain[-1:] for chain in forest.chains])
    kv = copies(*dense(forest, forest.prefixes), *own)

    def run(turn: int) -> tuple[Tensor, ...]:
        shared_k, shared_v, own_k, own_v = kv[turn]
        with backend("FLASH_ATTENTION"):
            return (
                scaled_dot_product_attention(shared_q, shared_k, shared_v),
                scaled_dot_product_attention(q, own_k, own_v),
            )

    return Contestant(run, len(kv), None)


def sdpa_prefill(forest: Forest, name: str) -> Contestant:
    num_rows, context = forest.shape.num_rows, forest.shape.context
    q, kv = forest.q.transpose(0, 1)[None], copies(*dense(forest, forest.chains))
    mask = {"is_causal": True} if num_rows == context else {"attn_mask": causal_lower_right(num_rows, context)}

    def run(turn: int) -> Tensor:
        with backend(name):
            return scaled_dot_product_attention(q, *kv[turn], **mask, enable_gqa=True)

    return Contestant(run, len(kv), lambda out: out[0].transpose(0, 1))


def flex(forest: Forest) -> Contestant:
    """FlexAttention over all segments side by side, compiled, or eager in a dry run. A row sees the keys of its group
    and its own; within its own part those up to its position."""
    shape = forest.shape
    num_prefixes, first = len(forest.prefixes), shape.context - shape.rows_each
    segments = [*forest.prefixes, *(chain[-1:] for chain in forest.chains)]
    parts = [forest.gather(segment) for segment in segments]
    kv = copies(*(torch.cat(rows).transpose(0, 1)[None].contiguous() for rows in zip(*parts, strict=True)))
    lengths = [len(k) for k, _ in parts]
    segment_of_key = torch.repeat_interleave(torch.arange(len(segments)), torch.tensor(lengths)).to(DEVICE)
    begins = [0] * num_prefixes + [shape.prefix] * shape.num_requests
    position_of_key = torch.cat([b + torch.arange(n) for b, n in zip(begins, lengths, strict=True)]).to(DEVICE)

    def mask(_batch: Tensor, _head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        request, segment = row // shape.rows_each, segment_of_key[key]
        is_read = segment == num_prefixes + request
        if num_prefixes:
            is_read = is_read | (segment == request // shape.readers)
        return is_read & (position_of_key[key] <= first + row % shape.rows_each)

    blocks = create_block_mask(mask, None, None, shape.num_rows, len(segment_of_key), device=DEVICE)
    attention = flex_attention if DRY else torch.compile(flex_attention, dynamic=False)
    q = forest.q.transpose(0, 1)[None]

    def run(turn: int) -> Tensor:
        return attention(q, *kv[turn], block_mask=blocks, enable_gqa=True)

    return Contestant(run, len(kv), lambda out: out[0].transpose(0, 1))


PageTable = tuple[Tensor, Tensor, Tensor]


def page_table(forest: Forest, chains: list[list[int]]) -> PageTable:
    """indptr, page ids and tokens in the last page of chains, whose pages must be full but for the last."""
    indptr, page_ids, last = [0], [], []
    for chain in chains:
        for segment in chain:
            page_ids += forest.pages[segment].tolist()
        indptr.append(len(page_ids))
        last.append((len(forest.slots(chain[-1])) - 1) % PAGE_SIZE + 1)
    if any(len(forest.slots(segment)) % PAGE_SIZE for chain in chains for segment in chain[:-1]):
        raise Skip("a prefix ends within a page")
    return ints(indptr), ints(page_ids), ints(last)


def flashinfer_workspace() -> Tensor:
    if importlib.util.find_spec("flashinfer") is None:
        raise Skip("flashinfer is not installed")
    return torch.empty(FLASHINFER_WORKSPACE_BYTES, dtype=torch.uint8, device=DEVICE)


def paged(forest: Forest, run: Callable[[Tensor, tuple[Tensor, Tensor]], Tensor]) -> Contestant:
    pages = copies(forest.k_pages, forest.v_pages)
    return Contestant(lambda turn: run(forest.q, pages[turn]), len(pages), lambda out: out)


def flashinfer_decode(forest: Forest) -> Contestant:
    """Every request reads its whole chain."""
    workspace = flashinfer_workspace()
    import flashinfer

    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
    wrapper.plan(
        *page_table(forest, forest.chains),
        forest.num_qo_heads,
        forest.num_kv_heads,
        forest.head_dim,
        PAGE_SIZE,
        q_data_type=torch.bfloat16,
        kv_data_type=torch.bfloat16,
    )
    return paged(forest, wrapper.run)


def flashinfer_cascade(forest: Forest) -> Contestant:
    """A level for prefixes, a level for own parts, and the merge."""
    if not forest.prefixes:
        raise Skip("there is no prefix")
    workspace = flashinfer_workspace()
    import flashinfer

    shape = forest.shape
    levels = [page_table(forest, forest.prefixes), page_table(forest, [chain[-1:] for chain in forest.chains])]
    rows = [ints(list(range(0, shape.num_rows + 1, step))) for step in (shape.readers, 1)]
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(2, workspace, "NHD")
    wrapper.plan(
        rows,
        *([level[part] for level in levels] for part in range(3)),
        forest.num_qo_heads,
        forest.num_kv_heads,
        forest.head_dim,
        PAGE_SIZE,
        q_data_type=torch.bfloat16,
    )
    return paged(forest, wrapper.run)


def flashinfer_prefill(forest: Forest) -> Contestant:
    workspace = flashinfer_workspace()
    import flashinfer

    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
    wrapper.plan(
        ints([0, forest.shape.num_rows]),
        *page_table(forest, forest.chains),
        forest.num_qo_heads,
        forest.num_kv_heads,
        forest.head_dim,
        PAGE_SIZE,
        causal=True,
        q_data_type=torch.bfloat16,
        kv_data_type=torch.bfloat16,
    )
    return paged(forest, wrapper.run)


Make = Callable[[Forest], Contestant]

# Of each round the contestants of decodes and of prefill chunks. The riskier a round, the later: a CUDA error ends it.
DECODE: dict[str, dict[str, Make]] = {
    "torch": {
        "SDPA flash": partial(sdpa_decode, name="FLASH_ATTENTION"),
        "SDPA cuDNN": partial(sdpa_decode, name="CUDNN_ATTENTION"),
        "flash cascade, no merge": sdpa_cascade,
    },
    "flashinfer": {"FlashInfer": flashinfer_decode, "FlashInfer cascade": flashinfer_cascade},
    "flex": {"FlexAttention": flex},
}
PREFILL: dict[str, dict[str, Make]] = {
    "torch": {
        "SDPA flash": partial(sdpa_prefill, name="FLASH_ATTENTION"),
        "SDPA cuDNN": partial(sdpa_prefill, name="CUDNN_ATTENTION"),
    },
    "flashinfer": {"FlashInfer": flashinfer_prefill},
    "flex": {"FlexAttention": flex},
}
