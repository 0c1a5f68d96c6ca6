"""Merging of attention states, and attention over shared prefixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import batchllm_ext as ext
from batchllm.integrations.flashinfer.graph_buffers import GraphBuffers
from batchllm.integrations.flashinfer.levels import new_level
from batchllm.integrations.flashinfer.paged_attention import (
    DataType,
    PagedAttention,
    PagedCache,
    Planned,
    check_supported,
    float_type,
    widened,
)
from batchllm.integrations.planned_attention import stream_of


def merge_state(v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two disjoint sets of keys, from the attention over each.

    v: [seq_len, num_heads, head_dim]. s: float32 [seq_len, num_heads], logarithms to base 2; -inf where a set is empty.
    """
    dtype = float_type("v_a", v_a.dtype)
    v, s = ext.merge_state(widened(v_a), s_a, widened(v_b), s_b, lse_base="2", stream=stream_of(v_a))
    return v.to(dtype), s


def merge_state_in_place(v: Tensor, s: Tensor, v_other: Tensor, s_other: Tensor, mask: Tensor | None = None) -> None:
    """merge_state into (v, s); with a mask, bool [seq_len], where that is true."""
    float_type("v", v.dtype)
    merged_v, merged_s = merge_state(v, s, v_other, s_other)
    if mask is not None:
        merged_v = torch.where(mask[:, None, None], merged_v, v)
        merged_s = torch.where(mask[:, None], merged_s, s)
    v.copy_(merged_v)
    s.copy_(merged_s)


def merge_states(v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """The same over dimension 1 of v [seq_len, num_states, num_heads, head_dim] and s [..., num_heads]."""
    dtype = float_type("v", v.dtype)
    merged_v, merged_s = ext.merge_states(widened(v), s, lse_base="2", stream=stream_of(v))
    return merged_v.to(dtype), merged_s


def by_level(num_levels: int, arrays: Mapping[str, Sequence[Tensor] | None]) -> list[dict[str, Tensor]]:
    """Of each level its arrays, by the names that errors give them. ValueError for another number of levels."""
    for name, of_levels in arrays.items():
        got = 0 if of_levels is None else len(of_levels)
        if got != num_levels:
            raise ValueError(f"{name}: expected {num_levels} tensors, one per level, got {got}")
    return [
        {f"{name}[{i}]": of_levels[i] for name, of_levels in arrays.items() if of_levels is not None}
        for i in range(num_levels)
    ]


class MultiLevelCascadeAttentionWrapper(PagedAttention):
    """Attention over pages that groups of rows share, level by level: one plan reads each group's pages once where
    that pays. `causal` speaks of the last level. A window counts positions through all levels, the last key's being a
    row's last; FlashInfer's kernels count it in every level anew."""

    def __init__(
        self,
        num_levels: int,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        qo_indptr_buf_arr: list[Tensor] | None = None,
        paged_kv_indptr_buf_arr: list[Tensor] | None = None,
        paged_kv_indices_buf_arr: list[Tensor] | None = None,
        paged_kv_last_page_len_buf_arr: list[Tensor] | None = None,
    ) -> None:
        """The buffers, one per level, go with use_cuda_graph: plan() writes into them, always as many groups, and no
        batch has more rows than the first."""
        if num_levels < 1:
            raise ValueError(f"num_levels: expected at least 1, got {num_levels}")
        buffers = {
            "qo_indptr_buf_arr": qo_indptr_buf_arr,
            "paged_kv_indptr_buf_arr": paged_kv_indptr_buf_arr,
            "paged_kv_indices_buf_arr": paged_kv_indices_buf_arr,
            "paged_kv_last_page_len_buf_arr": paged_kv_last_page_len_buf_arr,
        }
        super().__init__(
            float_workspace_buffer,
            kv_layout,
            [GraphBuffers(**level) for level in by_level(num_levels, buffers)] if use_cuda_graph else None,
        )
        self._num_levels = num_levels

    def plan(
        self,
        qo_indptr_arr: list[Tensor],
        paged_kv_indptr_arr: list[Tensor],
        paged_kv_indices_arr: list[Tensor],
        paged_kv_last_page_len: list[Tensor],
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        causal: bool = False,
        pos_encoding_mode: str = "NONE",
        use_fp16_qk_reduction: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        rope_scale: float | None = None,
        rope_theta: float | None = None,
        q_data_type: DataType = "float16",
        kv_data_type: DataType | None = None,
    ) -> None:
        """Index arrays of each level, outermost first: of rows, of pages, page ids, lengths of last pages. A level's
        groups hold all rows between them."""
        check_supported("plan", pos_encoding_mode=pos_encoding_mode)
        float_type("q_data_type", q_data_type)
        float_type("kv_data_type", kv_data_type or q_data_type)
        arrays = {
            "qo_indptr_arr": qo_indptr_arr,
            "paged_kv_indptr_arr": paged_kv_indptr_arr,
            "paged_kv_indices_arr": paged_kv_indices_arr,
            "paged_kv_last_page_len": paged_kv_last_page_len,
        }
        arrays_of_levels = by_level(self._num_levels, arrays)
        levels = [new_level(page_size, **of_level) for of_level in arrays_of_levels]
        last = levels[-1]
        for i, level in enumerate(levels):
            if level.qo_indptr[-1] != last.qo_indptr[-1]:
                raise ValueError(
                    f"qo_indptr_arr[{i}]: expected {last.qo_indptr[-1]} rows, as in the last level, got "
                    f"{level.qo_indptr[-1]}"
                )
        if causal and self._num_levels > 1 and (last.qo_len > last.kv_len + 1).any():
            raise NotImplementedError(
                "causal: BatchLLM's kernels take groups of the last level with at most one row more than keys, since "
                "earlier rows would stand before the end of the level above"
            )
        self._plan(
            Planned(levels, causal, window_left, sm_scale, logits_soft_cap, None),
            arrays_of_levels,
            num_qo_heads=num_qo_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            page_size=page_size,
        )

    def run(self, q: Tensor, paged_kv_cache: PagedCache) -> Tensor:
        """q, and what is returned: [num_rows, num_qo_heads, head_dim]."""
        return self._run(q, paged_kv_cache)

    begin_forward = plan
    forward = run
