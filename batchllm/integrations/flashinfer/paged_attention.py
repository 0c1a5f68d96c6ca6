"""What FlashInfer's wrappers of paged attention have in common: plan a batch, then run it for every layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchllm.integrations.flashinfer.chains import attention_batch
from batchllm.integrations.flashinfer.graph_buffers import GraphBuffers
from batchllm.integrations.flashinfer.levels import Level
from batchllm.integrations.planned_attention import PlannedAttention

PagedCache = Tensor | tuple[Tensor, Tensor]
DataType = str | torch.dtype

LOG2_E = math.log2(math.e)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

# What our kernels do not do, with the values that do not ask for it.
NOTHING_ASKED: dict[str, tuple[Any, ...]] = {
    "args": ((),),
    "block_tables": (None,),
    "custom_mask": (None,),
    "fixed_split_size": (None,),
    "jit_args": (None,),
    "jit_kwargs": (None,),
    "k_scale": (None, 1.0),
    "kv_cache_sf": (None,),
    "max_item_len_ptr": (None,),
    "packed_custom_mask": (None,),
    "pos_encoding_mode": ("NONE",),
    "prefix_len_ptr": (None,),
    "q_len_per_req": (None,),
    "q_scale": (None, 1.0),
    "seq_lens": (None,),
    "seq_lens_q": (None,),
    "skip_softmax_threshold_scale_factor": (None,),
    "token_pos_in_items_len": (0,),
    "token_pos_in_items_ptr": (None,),
    "v_scale": (None, 1.0),
    "variant_owns_mask": (False,),
    "window_right": (0,),
}
# What chooses among FlashInfer's kernels, or tells them what they may rely on: the result is the same.
HINTS = {
    "backend",
    "disable_split_kv",
    "enable_pdl",
    "max_sequence_kv",
    "max_token_per_sequence",
    "non_blocking",
    "rope_scale",  # where pos_encoding_mode asks for a rotation
    "rope_theta",
    "uniform_q_len",
    "use_fp16_qk_reduction",
    "use_fp16_softmax",
    "use_tensor_cores",
    "uses_spcompress",
}


def check_supported(call: str, **arguments: Any) -> None:
    """NotImplementedError for the first that asks for what our kernels do not do, by its name."""
    for name, value in arguments.items():
        if name in HINTS:
            continue
        if name not in NOTHING_ASKED:
            raise TypeError(f"{call}() got an unexpected keyword argument '{name}'")
        if isinstance(value, Tensor) or value not in NOTHING_ASKED[name]:
            only = " or ".join(map(repr, NOTHING_ASKED[name]))
            got = "a tensor" if isinstance(value, Tensor) else repr(value)
            raise NotImplementedError(f"{name}: BatchLLM's kernels take {only} only, got {got}")


def float_type(name: str, data_type: DataType) -> torch.dtype:
    dtype = getattr(torch, data_type, None) if isinstance(data_type, str) else data_type
    if dtype not in FLOATS:
        raise NotImplementedError(f"{name}: BatchLLM's kernels take float32, bfloat16 and float16, got {data_type}")
    return dtype


def widened(tensor: Tensor) -> Tensor:
    """In float32 where it is of float16 on a CPU, whose kernels take float32 and bfloat16."""
    return tensor.float() if tensor.dtype == torch.float16 and not tensor.is_cuda else tensor


def widened_pages(pages: Tensor, levels: list[Level]) -> Tensor:
    """The same of the pages that these read, at their places; the others hold anything."""
    if pages.dtype != torch.float16 or pages.is_cuda:
        return pages
    page_ids = torch.from_numpy(np.unique(np.concatenate([level.page_ids for level in levels])))
    wide = torch.empty(pages.shape, dtype=torch.float32)  # takes memory where it is written
    wide[page_ids] = pages[page_ids].float()
    return wide


@dataclass(frozen=True)
class Planned:
    """What plan() was told, apart from the heads."""

    levels: list[Level]
    causal: bool
    window_left: int
    sm_scale: float | None
    logits_soft_cap: float | None
    o_data_type: torch.dtype | None  # None: that of q


class PagedAttention:
    """Attention over pages that levels of groups share. `q` and the cache are on the device of plan()'s workspace, all
    of them in bfloat16 or float16, or on a CPU in float32. float16 on a CPU becomes float32 in every call: q, and each
    page that is read, once; results are rounded once."""

    def __init__(
        self, float_workspace_buffer: Tensor, kv_layout: str, graph_buffers: list[GraphBuffers] | None = None
    ) -> None:
        """Of the workspace only the device counts. graph_buffers: of each level, with use_cuda_graph."""
        if kv_layout not in ("NHD", "HND"):
            raise ValueError(f"kv_layout: expected 'NHD' or 'HND', got {kv_layout!r}")
        self.device = float_workspace_buffer.device
        if graph_buffers and self.device.type != "cpu":
            raise NotImplementedError(
                "use_cuda_graph: BatchLLM takes buffers for CUDA graphs on a CPU only, got a workspace on "
                f"{self.device.type}: a graph that was captured would not read the next plan"
            )
        self._graph_buffers = graph_buffers or []
        self._kv_layout = kv_layout
        self._planned: Planned | None = None
        self._shape: dict[str, int] = {}
        self._attentions: dict[tuple[bool, int], PlannedAttention] = {}  # by causal and window_left

    @property
    def is_cuda_graph_enabled(self) -> bool:
        return bool(self._graph_buffers)

    def _plan(self, planned: Planned, arrays: list[dict[str, Tensor]], **shape: int) -> None:
        """arrays: of each level those that its buffers hold, in their order."""
        num_rows = int(planned.levels[-1].qo_indptr[-1])
        for buffers, of_level in zip(self._graph_buffers, arrays, strict=False):
            buffers.check(num_rows, **of_level)
        self._shape, self._attentions = shape, {}
        self._planned = planned
        self._attention(planned.causal, planned.window_left)
        for buffers, of_level in zip(self._graph_buffers, arrays, strict=False):
            buffers.write(num_rows, **of_level)

    def _attention(self, causal: bool, window_left: int) -> PlannedAttention:
        assert self._planned is not None
        if (causal, window_left) not in self._attentions:
            page_size = self._shape["page_size"]
            batch, window = attention_batch(self._planned.levels, page_size, causal=causal, window_left=window_left)
            self._attentions[causal, window_left] = PlannedAttention(
                batch, self.device, window_left=window, **self._shape
            )
        return self._attentions[causal, window_left]

    def _run(
        self,
        q: Tensor,
        paged_kv_cache: PagedCache,
        changes: dict[str, Any] | None = None,
        *,
        out: Tensor | None = None,
        lse: Tensor | None = None,
        return_lse: bool = False,
        lse_base: str = "log2",
        lse_layout: str = "NH",
        sinks: Tensor | None = None,
    ) -> Any:
        """`changes` are those of Planned, for this call."""
        if self._planned is None:
            raise RuntimeError("run: expected a call of plan() before")
        planned = replace(self._planned, **(changes or {}))
        k_pages, v_pages = self._pages(paged_kv_cache)
        float_type("q", q.dtype)
        float_type("paged_kv_cache", k_pages.dtype)
        most = max((int(level.page_ids.max(initial=-1)) for level in planned.levels), default=-1)
        if most >= len(k_pages):
            raise ValueError(f"paged_kv_cache: expected pages up to {most}, as planned, got {len(k_pages)} pages")
        if lse_base not in ("log2", "ln"):
            raise ValueError(f"lse_base: expected 'log2' or 'ln', got {lse_base!r}")
        if lse_layout not in ("NH", "HN"):
            raise ValueError(f"lse_layout: expected 'NH' or 'HN', got {lse_layout!r}")
        if out is None:
            out = q.new_empty(q.shape, dtype=planned.o_data_type or q.dtype)
        if return_lse and lse is None:
            lse = q.new_empty(q.shape[:2] if lse_layout == "NH" else q.shape[1::-1], dtype=torch.float32)
        wanted, result = lse if return_lse else None, widened(out)
        self._attention(planned.causal, planned.window_left)(
            widened(q),
            widened_pages(k_pages, planned.levels),
            widened_pages(v_pages, planned.levels),
            out=result,
            lse=wanted.T if wanted is not None and lse_layout == "HN" else wanted,
            softmax_scale=planned.sm_scale,
            soft_cap=planned.logits_soft_cap or 0.0,
            sinks=sinks,
        )
        if result is not out:
            out.copy_(result)
        if wanted is None:
            return out
        if lse_base == "log2":
            wanted.mul_(LOG2_E)
        return out, wanted

    def _pages(self, paged_kv_cache: PagedCache) -> tuple[Tensor, Tensor]:
        """Views [num_pages, page_size, num_kv_heads, head_dim] of K and V."""
        if isinstance(paged_kv_cache, Tensor):
            if paged_kv_cache.ndim != 5 or paged_kv_cache.shape[1] != 2:
                raise ValueError(
                    f"paged_kv_cache: expected [num_pages, 2, ...] of five dimensions, or two tensors of four, got "
                    f"{list(paged_kv_cache.shape)}"
                )
            k_pages, v_pages = paged_kv_cache.unbind(1)
        else:
            k_pages, v_pages = paged_kv_cache
        is_hnd = self._kv_layout == "HND"
        names = ("num_kv_heads", "page_size", "head_dim") if is_hnd else ("page_size", "num_kv_heads", "head_dim")
        expected = tuple(self._shape[name] for name in names)
        for pages in (k_pages, v_pages):
            if pages.shape[1:] != expected:
                raise ValueError(
                    f"paged_kv_cache: expected pages of [{', '.join(names)}] = {list(expected)}, got "
                    f"{list(pages.shape[1:])}"
                )
        return (k_pages.transpose(1, 2), v_pages.transpose(1, 2)) if is_hnd else (k_pages, v_pages)
