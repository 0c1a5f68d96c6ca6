"""The attention of one batch, planned for the device of its tensors and run there, once per layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import batchllm_ext as ext


def stream_of(tensor: Tensor) -> int:
    """The `stream` of batchllm_ext's kernels: torch's current one; 0 on a CPU."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


class PlannedAttention:
    """A plan, and its copy in a GPU's memory. On a GPU, one call at a time: calls share a workspace."""

    def __init__(self, batch: tuple[Any, ...], device: torch.device, **shape: Any) -> None:
        """batch: what ext.plan_attention takes, a TokenBatch or its eight arrays. shape: num_qo_heads, num_kv_heads,
        head_dim, page_size, and optionally window_left. Raises ValueError for arrays that contradict each other."""
        if device.type == "cuda":
            gpu = torch.cuda.get_device_properties(device)
            shape["num_threads"] = gpu.multi_processor_count
            shape["device"] = ext.nearest_gpu(gpu.name, gpu.major)
        self.plan = ext.plan_attention(*batch, **shape)
        self._device_plans: dict[tuple[torch.device, int], ext.DevicePlan] = {}  # by device and number of pages

    def __call__(self, q: Tensor, k_pages: Tensor, v_pages: Tensor, **options: Any) -> None:
        """`ext.attention` with its options `out`, `lse`, `softmax_scale`, `soft_cap`, `sinks`."""
        if q.is_cuda:
            plan = self._device_plan(k_pages)
            ext.attention(plan, q, k_pages, v_pages, stream=stream_of(q), **options)
        else:
            ext.attention(self.plan, q, k_pages, v_pages, **options)

    def _device_plan(self, k_pages: Tensor) -> ext.DevicePlan:
        key = k_pages.device, len(k_pages)
        if key not in self._device_plans:
            layout = ext.PlanLayout(self.plan, len(k_pages))
            packed = np.zeros(layout.num_ints, np.int32)
            layout.pack(self.plan, packed)
            buffer = torch.from_numpy(packed).to(k_pages.device)
            workspace = torch.empty(layout.num_workspace_floats, device=k_pages.device)
            self._device_plans[key] = ext.DevicePlan(layout, buffer, workspace)
        return self._device_plans[key]
