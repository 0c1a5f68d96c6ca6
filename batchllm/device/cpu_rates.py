"""How fast this CPU multiplies, reads weights and attends, measured once for estimates."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from torch import Tensor

import batchllm_ext as ext
from batchllm.device.int8 import Int8Linear
from batchllm.device.linear import Linear
from batchllm.device.measurements import Turns, keep, kept

FILE = "rates"
# The fastest of this many turns in which no thread waited for a CPU that others had, or of as many as time allows.
QUIET_TURNS, LIMIT_S = 20, 2.0
SIZE = 1024  # of a weight, outputs and inputs: a turn takes about a millisecond, which others may leave undisturbed
ROWS = 128  # at which a product reaches its full rate
COLD_WEIGHTS = 8  # each read once between two reads of CACHE_BYTES of other memory
CACHE_BYTES = 256 << 20  # more than any cache
# Attention reads a segment, with this number of rows.
SEGMENT_TOKENS, READERS = 1024, 16
PAGE_SIZE, NUM_QO_HEADS, NUM_KV_HEADS, HEAD_DIM = 16, 8, 2, 64


@dataclass(frozen=True)
class CpuRates:
    product_flops_per_s: float
    """Rate of matrix products with many rows."""
    weight_bytes_per_s: float
    """Rate of reading a weight from memory in a product of one row."""
    attention_flops_per_s: float
    """Rate of our kernel, over a segment that several rows read."""


@dataclass(frozen=True)
class MeasuredRates:
    rates: CpuRates
    was_quiet: bool
    """Whether they are the CPU's own rates, undisturbed by other programs."""


def cpu_rates(dtype: torch.dtype, quantize: str | None, num_threads: int) -> MeasuredRates:
    """The rates with weights of `dtype` or `quantize`, multiplied like a model's, and KV of `dtype`: from a measurement
    of some tenths of a second, or an earlier quiet one of this CPU, torch, instruction set and number of threads."""
    what = f"{quantize or dtype}, KV {dtype}, {ext.cpu_isa()}, {num_threads} threads"
    if rates := kept(FILE, what, [field.name for field in fields(CpuRates)]):
        return MeasuredRates(CpuRates(**rates), was_quiet=True)
    measured = measure_rates(dtype, quantize, num_threads)
    if measured.was_quiet:
        keep(FILE, what, asdict(measured.rates))
        return measured
    # Threads that never run at the same time may seem slower than one.
    alone = measure_rates(dtype, quantize, num_threads=1).rates
    best = {name: max(rate, getattr(alone, name)) for name, rate in asdict(measured.rates).items()}
    return MeasuredRates(CpuRates(**best), was_quiet=False)


@torch.inference_mode()
def measure_rates(dtype: torch.dtype, quantize: str | None, num_threads: int) -> MeasuredRates:
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        turns = Turns(QUIET_TURNS, LIMIT_S)
        rates = CpuRates(
            product_flops_per_s=_product_flops_per_s(turns, dtype, quantize),
            weight_bytes_per_s=_weight_bytes_per_s(turns, dtype, quantize),
            attention_flops_per_s=_attention_flops_per_s(turns, dtype, num_threads),
        )
        return MeasuredRates(rates, turns.were_quiet)
    finally:
        torch.set_num_threads(threads_before)


def _product_flops_per_s(turns: Turns, dtype: torch.dtype, quantize: str | None) -> float:
    multiply, x = _new_linear(dtype, quantize), torch.rand(ROWS, SIZE).to(dtype)
    return 2 * ROWS * SIZE * SIZE / turns.best_s(lambda: multiply(x))


def _weight_bytes_per_s(turns: Turns, dtype: torch.dtype, quantize: str | None) -> float:
    warm, *cold = (_new_linear(dtype, quantize) for _ in range(1 + COLD_WEIGHTS))
    x, others = torch.rand(1, SIZE).to(dtype), torch.ones(CACHE_BYTES // 4)
    reads = itertools.count()
    weights = itertools.cycle(cold)

    def evict() -> None:
        if next(reads) % COLD_WEIGHTS == 0:
            others.sum()
            warm(x)  # so that the instructions are cached, as whenever a layer is read

    return SIZE * SIZE * (1 if quantize else dtype.itemsize) / turns.best_s(lambda: next(weights)(x), before=evict)


def _new_linear(dtype: torch.dtype, quantize: str | None) -> Callable[[Tensor], Tensor]:
    weight = torch.rand(SIZE, SIZE)
    if quantize:
        return Int8Linear(weight)
    linear = Linear(weight.to(dtype))
    linear.pack()
    return linear


def _attention_flops_per_s(turns: Turns, dtype: torch.dtype, num_threads: int) -> float:
    num_pages = SEGMENT_TOKENS // PAGE_SIZE
    plan = ext.plan_attention(
        span_indptr=np.arange(READERS + 1, dtype=np.int32),
        span_begin=np.full(READERS, SEGMENT_TOKENS - 1, np.int32),
        link_indptr=np.arange(READERS + 1, dtype=np.int32),
        link_segment=np.zeros(READERS, np.int32),
        segment_page_indptr=np.array([0, num_pages], np.int32),
        segment_page_ids=np.arange(num_pages, dtype=np.int32),
        segment_begin=np.zeros(1, np.int32),
        segment_num_tokens=np.array([SEGMENT_TOKENS], np.int32),
        num_qo_heads=NUM_QO_HEADS,
        num_kv_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        page_size=PAGE_SIZE,
        num_threads=num_threads,
    )
    q = torch.randn(READERS, NUM_QO_HEADS, HEAD_DIM).to(dtype)
    k_pages, v_pages = torch.randn(2, num_pages, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM).to(dtype)
    out = torch.empty_like(q)

    def attend() -> None:
        ext.attention(plan, q, k_pages, v_pages, out=out, lse=None, num_threads=num_threads)

    flops = 4 * HEAD_DIM * NUM_QO_HEADS * READERS * SEGMENT_TOKENS
    return float(flops / turns.best_s(attend))
