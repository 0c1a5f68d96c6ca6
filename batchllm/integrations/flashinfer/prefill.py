"""Attention of requests with any numbers of rows, as prefill chunks have."""

from __future__ import annotations

from functools import partialmethod
from typing import Any

from torch import Tensor

from batchllm.integrations.flashinfer.graph_buffers import GraphBuffers
from batchllm.integrations.flashinfer.levels import new_level
from batchllm.integrations.flashinfer.paged_attention import (
    DataType,
    PagedAttention,
    PagedCache,
    Planned,
    check_supported,
    float_type,
)


class BatchPrefillWithPagedKVCacheWrapper(PagedAttention):
    """Every request's rows, the last of which stands at its last key, against its pages. Those that requests have in
    common are read once where that pays."""

    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        qo_indptr_buf: Tensor | None = None,
        paged_kv_indptr_buf: Tensor | None = None,
        paged_kv_indices_buf: Tensor | None = None,
        paged_kv_last_page_len_buf: Tensor | None = None,
        custom_mask_buf: Tensor | None = None,
        mask_indptr_buf: Tensor | None = None,
        backend: str = "auto",
        jit_args: list[Any] | None = None,
        jit_kwargs: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        """The buffers go with use_cuda_graph: plan() writes into them, of one batch size, and no batch has more rows
        than the first. Those of masks are not used."""
        check_supported("BatchPrefillWithPagedKVCacheWrapper", jit_args=jit_args, jit_kwargs=jit_kwargs, **others)
        buffers = {
            "qo_indptr_buf": qo_indptr_buf,
            "paged_kv_indptr_buf": paged_kv_indptr_buf,
            "paged_kv_indices_buf": paged_kv_indices_buf,
            "paged_kv_last_page_len_buf": paged_kv_last_page_len_buf,
        }
        super().__init__(float_workspace_buffer, kv_layout, [GraphBuffers(**buffers)] if use_cuda_graph else None)

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        head_dim_vo: int | None = None,
        custom_mask: Tensor | None = None,
        packed_custom_mask: Tensor | None = None,
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
        o_data_type: DataType | None = None,
        **others: Any,
    ) -> None:
        """qo_indptr: [batch_size + 1] rows of each request. paged_kv_indptr: [batch_size + 1] its pages.
        paged_kv_indices: page ids. paged_kv_last_page_len: [batch_size]. Rows that see no key become 0, their
        log-sum-exp -inf."""
        check_supported(
            "plan",
            custom_mask=custom_mask,
            packed_custom_mask=packed_custom_mask,
            pos_encoding_mode=pos_encoding_mode,
            **others,
        )
        if head_dim_vo not in (None, head_dim_qk):
            raise NotImplementedError(f"head_dim_vo: BatchLLM's kernels take {head_dim_qk} only, got {head_dim_vo}")
        float_type("q_data_type", q_data_type)
        float_type("kv_data_type", kv_data_type or q_data_type)
        arrays = {
            "qo_indptr": qo_indptr,
            "paged_kv_indptr": paged_kv_indptr,
            "paged_kv_indices": paged_kv_indices,
            "paged_kv_last_page_len": paged_kv_last_page_len,
        }
        level = new_level(page_size, **arrays)
        o_dtype = float_type("o_data_type", o_data_type) if o_data_type is not None else None
        self._plan(
            Planned([level], causal, window_left, sm_scale, logits_soft_cap, o_dtype),
            [arrays],
            num_qo_heads=num_qo_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim_qk,
            page_size=page_size,
        )

    def run(
        self,
        q: Tensor,
        paged_kv_cache: PagedCache,
        *args: Any,
        q_scale: float | Tensor | None = None,
        k_scale: float | Tensor | None = None,
        v_scale: float | Tensor | None = None,
        out: Tensor | None = None,
        lse: Tensor | None = None,
        return_lse: bool = False,
        lse_base: str = "log2",
        lse_layout: str = "NH",
        enable_pdl: bool | None = None,
        window_left: int | None = None,
        sinks: Tensor | None = None,
        **others: Any,
    ) -> Any:
        """q: [qo_indptr[-1], num_qo_heads, head_dim]. Returns what is of its shape; with return_lse also float32
        [qo_indptr[-1], num_qo_heads] (lse_layout "HN": its transpose), logarithms to base 2 (lse_base "ln": e)."""
        check_supported("run", args=args, q_scale=q_scale, k_scale=k_scale, v_scale=v_scale, **others)
        changes = None if window_left is None else {"window_left": window_left}
        return self._run(
            q,
            paged_kv_cache,
            changes,
            out=out,
            lse=lse,
            return_lse=return_lse,
            lse_base=lse_base,
            lse_layout=lse_layout,
            sinks=sinks,
        )

    def forward(
        self,
        q: Tensor,
        paged_kv_cache: PagedCache,
        causal: bool = False,
        pos_encoding_mode: str = "NONE",
        use_fp16_qk_reduction: bool = False,
        k_scale: float | None = None,
        v_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        sm_scale: float | None = None,
        rope_scale: float | None = None,
        rope_theta: float | None = None,
        *,
        return_lse: bool = False,
    ) -> Any:
        """run() with another mask, window, soft cap and scale than planned."""
        check_supported("forward", pos_encoding_mode=pos_encoding_mode, k_scale=k_scale, v_scale=v_scale)
        changes = {
            "causal": causal,
            "window_left": window_left,
            "logits_soft_cap": logits_soft_cap,
            "sm_scale": sm_scale,
        }
        return self._run(q, paged_kv_cache, changes, return_lse=return_lse)

    begin_forward = plan
    run_return_lse = partialmethod(run, return_lse=True)
    forward_return_lse = partialmethod(forward, return_lse=True)
