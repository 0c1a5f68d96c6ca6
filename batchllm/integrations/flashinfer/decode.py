"""Attention of requests that each have as many rows, as a decode step has."""

from __future__ import annotations

from functools import partialmethod
from typing import Any

import torch
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


class BatchDecodeWithPagedKVCacheWrapper(PagedAttention):
    """Every request's last q_len_per_req rows, against its pages. Those that requests have in common are read once
    where that pays."""

    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: Tensor | None = None,
        paged_kv_indices_buffer: Tensor | None = None,
        paged_kv_last_page_len_buffer: Tensor | None = None,
        backend: str = "auto",
        jit_args: list[Any] | None = None,
    ) -> None:
        """The buffers go with use_cuda_graph: plan() writes into them, of one batch size."""
        check_supported("BatchDecodeWithPagedKVCacheWrapper", jit_args=jit_args)
        buffers = {
            "paged_kv_indptr_buffer": paged_kv_indptr_buffer,
            "paged_kv_indices_buffer": paged_kv_indices_buffer,
            "paged_kv_last_page_len_buffer": paged_kv_last_page_len_buffer,
        }
        super().__init__(float_workspace_buffer, kv_layout, [GraphBuffers(**buffers)] if use_cuda_graph else None)
        self._q_len_per_req: int | None = None  # of the first plan

    def plan(
        self,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        pos_encoding_mode: str = "NONE",
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: DataType | None = "float16",
        kv_data_type: DataType | None = None,
        o_data_type: DataType | None = None,
        data_type: DataType | None = None,
        sm_scale: float | None = None,
        rope_scale: float | None = None,
        rope_theta: float | None = None,
        *,
        q_len_per_req: int = 1,
        is_causal: bool | None = None,
        **others: Any,
    ) -> None:
        """indptr: [batch_size + 1] pages of each request. indices: page ids. last_page_len: [batch_size]. A request
        without pages has no keys: its rows become 0, their log-sum-exp -inf."""
        check_supported("plan", pos_encoding_mode=pos_encoding_mode, **others)
        for name, given in (("q_data_type", q_data_type), ("kv_data_type", kv_data_type), ("data_type", data_type)):
            float_type(name, given or "float16")
        if q_len_per_req < 1:
            raise ValueError(f"q_len_per_req: expected at least 1, got {q_len_per_req}")
        if is_causal is not None and is_causal != (q_len_per_req > 1):
            raise NotImplementedError(f"is_causal: BatchLLM's kernels take q_len_per_req > 1 only, got {is_causal}")
        if self.is_cuda_graph_enabled and self._q_len_per_req not in (None, q_len_per_req):
            raise ValueError(
                f"q_len_per_req: use_cuda_graph expects {self._q_len_per_req}, as first planned, got {q_len_per_req}"
            )
        rows = torch.arange(max(len(indptr), 1)) * q_len_per_req
        arrays = {"indptr": indptr, "indices": indices, "last_page_len": last_page_len}
        level = new_level(page_size, **{"the batch": rows, **arrays})
        o_dtype = float_type("o_data_type", o_data_type) if o_data_type is not None else None
        self._plan(
            Planned([level], True, window_left, sm_scale, logits_soft_cap, o_dtype),
            [arrays],
            num_qo_heads=num_qo_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            page_size=page_size,
        )
        if self._q_len_per_req is None:
            self._q_len_per_req = q_len_per_req

    def run(
        self,
        q: Tensor,
        paged_kv_cache: PagedCache,
        *args: Any,
        q_scale: float | None = None,
        k_scale: float | None = None,
        v_scale: float | None = None,
        out: Tensor | None = None,
        lse: Tensor | None = None,
        return_lse: bool = False,
        enable_pdl: bool | None = None,
        window_left: int | None = None,
        sinks: Tensor | None = None,
        **others: Any,
    ) -> Any:
        """q: [batch_size * q_len_per_req, num_qo_heads, head_dim]. Returns what is of its shape; with return_lse also
        float32 [batch_size * q_len_per_req, num_qo_heads], logarithms to base 2."""
        check_supported("run", args=args, q_scale=q_scale, k_scale=k_scale, v_scale=v_scale, **others)
        changes = None if window_left is None else {"window_left": window_left}
        return self._run(q, paged_kv_cache, changes, out=out, lse=lse, return_lse=return_lse, sinks=sinks)

    def forward(
        self,
        q: Tensor,
        paged_kv_cache: PagedCache,
        pos_encoding_mode: str = "NONE",
        q_scale: float | None = None,
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
        """run() with another window, soft cap and scale than planned."""
        check_supported(
            "forward", pos_encoding_mode=pos_encoding_mode, q_scale=q_scale, k_scale=k_scale, v_scale=v_scale
        )
        changes = {"window_left": window_left, "logits_soft_cap": logits_soft_cap, "sm_scale": sm_scale}
        return self._run(q, paged_kv_cache, changes, return_lse=return_lse)

    begin_forward = plan
    run_return_lse = partialmethod(run, return_lse=True)
    forward_return_lse = partialmethod(forward, return_lse=True)


class CUDAGraphBatchDecodeWithPagedKVCacheWrapper(BatchDecodeWithPagedKVCacheWrapper):
    """The same with use_cuda_graph, which asks for the buffers."""

    def __init__(
        self,
        workspace_buffer: Tensor,
        indptr_buffer: Tensor,
        indices_buffer: Tensor,
        last_page_len_buffer: Tensor,
        kv_layout: str = "NHD",
        use_tensor_cores: bool = False,
    ) -> None:
        super().__init__(
            workspace_buffer,
            kv_layout,
            use_cuda_graph=True,
            use_tensor_cores=use_tensor_cores,
            paged_kv_indptr_buffer=indptr_buffer,
            paged_kv_indices_buffer=indices_buffer,
            paged_kv_last_page_len_buffer=last_page_len_buffer,
        )
