"""What tests on a GPU share (`make test-gpu` runs them, marked gpu), and what claims to be on one."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

import batchllm_ext
from tests.cases import Inputs
from tests.simt.backend import to_bits
from tests.simt.precision import TORCH_TYPES

needs_build = pytest.mark.skipif(not batchllm_ext.has_cuda(), reason="this build has no CUDA kernels")


class OnGpu:
    """Claims to lie on a GPU."""

    def __init__(self, array: np.ndarray, device_id: int = 0):
        self.array, self.device_id = array, device_id

    def __dlpack_device__(self):
        return 2, self.device_id

    def __dlpack__(self, *, stream: int):
        assert stream == -1  # the producer is asked to wait for nothing, which a CUDA graph could not capture
        capsule = self.array.__dlpack__()  # a DLManagedTensor: data pointer, device_type, device_id
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        device = (ctypes.c_int32 * 2).from_address(pointer(capsule, b"dltensor") + 8)
        device[:] = 2, self.device_id
        return capsule


def current_stream() -> int:
    if not (batchllm_ext.has_cuda() and torch.cuda.is_available()):
        pytest.fail("tests marked gpu need a GPU, torch with CUDA, and a build with BATCHLLM_CUDA=ON")
    return torch.cuda.current_stream().cuda_stream


def on_gpu(values: np.ndarray, dtype: str) -> torch.Tensor:
    """In memory of the same strides; gaps hold NaN."""
    bits = to_bits(values, dtype)
    strides = [stride // bits.itemsize for stride in bits.strides]
    extent = 1 + sum((size - 1) * stride for size, stride in zip(bits.shape, strides, strict=True)) if bits.size else 0
    memory = np.lib.stride_tricks.as_strided(bits, (extent,), (bits.itemsize,))
    return torch.from_numpy(memory.view(np.int16)).cuda().view(TORCH_TYPES[dtype]).as_strided(bits.shape, strides)


def plan_for_gpu(inputs: Inputs, **options) -> batchllm_ext.AttentionPlan:
    """For the GPU at hand."""
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    device = batchllm_ext.nearest_gpu(gpu.name, gpu.major)
    return batchllm_ext.plan_attention(
        **inputs.plan_arguments, num_threads=gpu.multi_processor_count, device=device, **options
    )


class GpuAttention:
    """attention() over one layout, whose plans and inputs may change between calls."""

    def __init__(self, inputs: Inputs, dtype: str, plan: batchllm_ext.AttentionPlan, spare: int = 0):
        """`plan` is the largest; `spare` is room behind each of its arrays."""
        case = inputs.case
        room = {name: size + spare for name, size in plan.sizes.items()}
        self.dtype, self.options = dtype, inputs.options
        self.layout = batchllm_ext.PlanLayout(plan, len(inputs.k_pages), **room)
        self.buffer = torch.empty(self.layout.num_ints, dtype=torch.int32, device="cuda")
        workspace = torch.full((self.layout.num_workspace_floats,), torch.nan, device="cuda")
        self.device_plan = batchllm_ext.DevicePlan(self.layout, self.buffer, workspace)
        rows = self.layout.sizes["num_rows"]
        self.q = torch.zeros(rows, case.num_qo_heads, case.head_dim, dtype=TORCH_TYPES[dtype], device="cuda")
        self.k_pages, self.v_pages = (on_gpu(pages, dtype) for pages in (inputs.k_pages, inputs.v_pages))
        self.out = torch.full_like(self.q, torch.nan)
        self.lse = torch.full(self.q.shape[:2], torch.nan, device="cuda")
        if inputs.sinks is not None:
            self.options["sinks"] = torch.from_numpy(inputs.sinks).cuda()

    def upload(self, inputs: Inputs, plan: batchllm_ext.AttentionPlan) -> None:
        """Into the memory that the calls read."""
        packed = np.full(self.layout.num_ints, 0x7F7F7F7F, np.int32)  # what is behind the plan leads nowhere
        self.layout.pack(plan, packed)
        self.buffer.copy_(torch.from_numpy(packed))
        self.q[: len(inputs.q)] = on_gpu(inputs.q, self.dtype)
        for pages, values in ((self.k_pages, inputs.k_pages), (self.v_pages, inputs.v_pages)):
            pages.copy_(on_gpu(values, self.dtype))

    def run(self) -> None:
        batchllm_ext.attention(
            self.device_plan,
            self.q,
            self.k_pages,
            self.v_pages,
            out=self.out,
            lse=self.lse,
            stream=current_stream(),
            **self.options,
        )

    def results(self, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        torch.cuda.synchronize()
        return self.out[:num_rows].float().cpu().numpy(), self.lse[:num_rows].cpu().numpy()
