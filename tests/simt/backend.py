"""The CUDA attention kernels on the SIMT emulator, as a back end for the cases of tests/cases.py.

`make test-cpp` builds the libraries; BATCHLLM_SIMT_DIR says where they are if not in build/cpp/tests/simt.
"""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import batchllm_ext
from tests.cases import Case, Inputs
from tests.reference import from_bf16, to_bf16

HEAD_DIMS = batchllm_ext.gpu_head_dims()
ORDERS = ("ascending", "descending", "random")
BUILDS = ("fast", "checked")
NUM_MULTIPROCESSORS = 108  # what plans are balanced for: an A100's

DEFAULT_DIRECTORY = Path(__file__).resolve().parents[2] / "build" / "cpp" / "tests" / "simt"


class Array(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("num_elements", ctypes.c_int64), ("strides", ctypes.c_int64 * 3))


class Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("is_half", "head_dim", "num_kv_heads", "group_size", "page_size")),
        *((name, ctypes.c_int32) for name in ("num_slots", "heads_per_block", "num_spare")),
        *((name, ctypes.c_float) for name in ("softmax_scale", "soft_cap")),
        *((name, Array) for name in ("items", "rows", "pieces", "page_ids", "merge_rows")),
        *((name, Array) for name in ("q", "k_pages", "v_pages", "out", "lse", "sinks")),
        ("order", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        ("preempt_one_in", ctypes.c_uint32),
    )


class Counts(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("products", "matrix_loads", "bank_conflicts", "async_copies"),
            *("num_wide_tiles", "num_narrow_tiles"),
        )
    )


@dataclass
class Result:
    out: np.ndarray  # [num_tokens, num_qo_heads, head_dim] float32
    lse: np.ndarray | None  # [num_tokens, num_qo_heads]
    counts: Counts


def build_directory() -> Path:
    directory = Path(os.environ.get("BATCHLLM_SIMT_DIR", DEFAULT_DIRECTORY))
    if not directory.exists():
        pytest.fail(f"{directory} is missing: run `make test-cpp` (or `make test`)")
    return directory


@functools.cache
def library(build: str | Path) -> ctypes.CDLL:
    """One of BUILDS, or a file."""
    path = build if isinstance(build, Path) else build_directory() / f"libsimt_attention_{build}.so"
    loaded = ctypes.CDLL(str(path))
    loaded.simt_attention.restype = ctypes.c_char_p
    return loaded


def supports(case: Case) -> bool:
    """Rows of whole 16-byte units."""
    return case.head_dim in HEAD_DIMS and case.layout != "strided"


def to_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """To 16 bits, in memory of the same strides; gaps hold NaN."""
    bits = to_bf16(values) if dtype == "bfloat16" else values.astype(np.float16).view(np.uint16)
    strides = [stride // values.itemsize for stride in values.strides]
    extent = 1 + sum((size - 1) * stride for size, stride in zip(values.shape, strides, strict=True))
    memory = np.full(max(extent, 0) if values.size else 0, 0xFFFF, np.uint16)
    view = np.lib.stride_tricks.as_strided(memory, values.shape, [2 * stride for stride in strides])
    view[...] = bits
    return view


def from_bits(bits: np.ndarray, dtype: str) -> np.ndarray:
    return from_bf16(bits) if dtype == "bfloat16" else bits.view(np.float16).astype(np.float32)


def rounded(inputs: Inputs, dtype: str) -> Inputs:
    """The inputs as 16 bits hold them."""

    def round_to(values: np.ndarray) -> np.ndarray:
        bits = to_bf16(values) if dtype == "bfloat16" else values.astype(np.float16).view(np.uint16)
        return from_bits(bits, dtype)

    return replace(
        inputs,
        q=round_to(inputs.q),
        segment_k=[round_to(k) for k in inputs.segment_k],
        segment_v=[round_to(v) for v in inputs.segment_v],
    )


def array_of(array: np.ndarray | None) -> Array:
    if array is None or array.size == 0:
        return Array(None if array is None else array.ctypes.data, 0)
    strides = [stride // array.itemsize for stride in array.strides]
    extent = 1 + sum((size - 1) * stride for size, stride in zip(array.shape, strides, strict=True))
    return Array(array.ctypes.data, extent, (ctypes.c_int64 * 3)(*strides[:3]))


def attention(
    inputs: Inputs,
    *,
    dtype: str = "bfloat16",
    build: str | Path = "checked",
    order: str = "ascending",
    seed: int = 1,
    preempt_one_in: int = 0,
    with_lse: bool = True,
    heads_per_block: int = 0,
    spare: int = 0,
    num_threads: int = NUM_MULTIPROCESSORS,
    device: str = "cuda",
    **plan_options,
) -> Result:
    """The plan is one for a GPU unless `device` is "cpu"; out and lse hold NaN before. Whatever the emulator
    finds wrong fails the test."""
    case = inputs.case
    plan = batchllm_ext.plan_attention(**inputs.plan_arguments, num_threads=num_threads, device=device, **plan_options)
    buffers = plan.buffers
    tensors = {
        "q": to_bits(inputs.q, dtype),
        "k_pages": to_bits(inputs.k_pages, dtype),
        "v_pages": to_bits(inputs.v_pages, dtype),
        "out": np.full(inputs.q.shape, 0xFFFF, np.uint16),
        "lse": np.full(inputs.q.shape[:2], np.nan, np.float32) if with_lse else None,
        "sinks": inputs.sinks,
    }
    call = Call(
        is_half=dtype == "float16",
        head_dim=case.head_dim,
        num_kv_heads=case.num_kv_heads,
        group_size=case.num_qo_heads // case.num_kv_heads,
        page_size=case.page_size,
        num_slots=plan.num_partial_rows,
        heads_per_block=heads_per_block,
        num_spare=spare,
        softmax_scale=case.head_dim**-0.5 if case.softmax_scale is None else case.softmax_scale,
        soft_cap=case.soft_cap,
        **{name: array_of(array) for name, array in {**buffers, **tensors}.items()},
        order=ORDERS.index(order),
        seed=seed,
        preempt_one_in=preempt_one_in,
    )
    counts = Counts()
    findings = library(build).simt_attention(ctypes.byref(call), ctypes.byref(counts)).decode()
    assert not findings, f"{case} ({build}, {order}):\n{findings}"
    return Result(from_bits(tensors["out"], dtype), tensors["lse"], counts)
