"""Which device a model runs on, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import batchllm_ext as ext
from batchllm.device.int8 import can_multiply_int8

# Whether the tests have run on a GPU: docs/results/gpu.md, which is not installed, has the result.
TESTED_ON_GPU = False
MIN_COMPUTE_CAPABILITY = (8, 0)  # what the kernels are compiled for
GPU_DTYPES = ("auto", "bfloat16", torch.bfloat16)
CPU_DTYPES = ("float32", "bfloat16")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class DeviceChoice:
    device: torch.device
    why: str

    def __str__(self) -> str:
        return f"{self.device}: {self.why}"


def choose_device(wanted: str, dtype: Any, quantize: str | None = None) -> DeviceChoice:
    """`wanted`: "auto", "cpu" or "cuda"; `dtype` and `quantize` as EngineOptions takes them. Raises ValueError for
    "cuda" without a GPU that the kernels can run on, and for "int8" if nothing multiplies it."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected 'auto', 'cpu' or 'cuda', got {wanted!r}")
    if quantize is not None:
        if wanted == "cuda":
            raise ValueError(f"quantize: {quantize!r} is for a CPU, and device is 'cuda'")
        if not can_multiply_int8():
            raise ValueError(f"quantize: {quantize!r} needs oneDNN, which torch {torch.__version__} is without here")
    if wanted == "cpu":
        return DeviceChoice(CPU, "asked for")
    if quantize is not None:
        return DeviceChoice(CPU, f"quantize is {quantize!r}, which is for one")
    if lacks := _lacks():
        if wanted == "cuda":
            raise ValueError(f"device: 'cuda' needs {lacks}")
        return DeviceChoice(CPU, f"'cuda' needs {lacks}")
    if wanted == "auto" and not TESTED_ON_GPU:
        return DeviceChoice(CPU, "there is a GPU, but the tests have not run on one yet; device='cuda' takes it")
    if wanted == "auto" and dtype not in GPU_DTYPES:
        return DeviceChoice(CPU, f"there is a GPU, but it takes bfloat16 only, and dtype is {dtype!r}")
    device = torch.device("cuda", torch.cuda.current_device())
    return DeviceChoice(device, "asked for" if wanted == "cuda" else "there is a GPU, and the tests have run on one")


def choose_dtype(wanted: Any, quantize: str | None, device: torch.device) -> torch.dtype:
    """The dtype of weights and KV, as EngineOptions says. Raises ValueError for one that does not run there."""
    if device.type == "cuda":
        if wanted not in GPU_DTYPES:
            raise ValueError(f"dtype: expected 'auto' or 'bfloat16' on a GPU, got {wanted!r}")
        return torch.bfloat16
    if wanted == "auto":
        return torch.bfloat16 if quantize or cpu_has_bf16_dot() else torch.float32
    for name in CPU_DTYPES:
        dtype: torch.dtype = getattr(torch, name)
        if wanted in (name, dtype):
            return dtype
    raise ValueError(f"dtype: expected 'auto', {', '.join(map(repr, CPU_DTYPES))}, got {wanted!r}")


def refusal_of_head_dim(head_dim: int) -> str | None:
    """Why attention on a GPU does not support it, if so."""
    if head_dim in (known := ext.gpu_head_dims()):
        return None
    return f"head_dim is {head_dim}, and attention on a GPU is compiled for {', '.join(map(str, known))}"


def _lacks() -> str | None:
    """What is missing for using a GPU, if anything."""
    if not torch.cuda.is_available():
        return f"a GPU, and torch {torch.__version__} finds none"
    if not ext.has_cuda():
        return "batchllm_ext built with BATCHLLM_CUDA=ON"
    if (capability := torch.cuda.get_device_capability()) < MIN_COMPUTE_CAPABILITY:
        return f"a GPU of compute capability 8.0 or later, got {capability}"
    return None


def cpu_has_bf16_dot() -> bool:
    """Whether the CPU has dot products of bfloat16, for which "auto" takes it."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags
