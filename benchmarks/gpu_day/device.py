"""The device of this run, the CPU in a dry one: what is tried on it, and how it is timed."""

from __future__ import annotations

import math
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import batchllm_ext as ext
from benchmarks.gpu_day.results import DRY, record

DEVICE = "cpu" if DRY else "cuda"
ROTATED_BYTES = 1 << (20 if DRY else 28)  # several times the L2 cache
MAX_TURNS = 40
NUM_SAMPLES, NUM_WARM_UPS = 7, 2
CONTEXT_LOST = 70  # exit status


class Skip(Exception):
    """This machine lacks what is needed, which is no failure."""


class Attempts:
    """Parts of a program, each of which is tried whatever became of those before it."""

    def __init__(self) -> None:
        self.num_failed = 0

    @contextmanager
    def __call__(self, what: str, **values: Any) -> Iterator[None]:
        """An exception becomes a line of the results. Where CUDA is lost with it, no later call can succeed, and the
        process ends with status 70."""
        try:
            yield
            synchronize()
        except Skip as reason:
            record(what, **values, skipped=str(reason))
        except Exception as error:
            self.num_failed += 1
            record(what, **values, error=f"{type(error).__name__}: {error}"[:500])
            traceback.print_exc()
            if context_is_lost():
                record(what, **values, fatal="the CUDA context is lost")
                os._exit(CONTEXT_LOST)

    @property
    def exit_status(self) -> int:
        return 1 if self.num_failed else 0


attempt = Attempts()


def context_is_lost() -> bool:
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").cpu()
    except Exception:
        return True
    return False


def synchronize() -> None:
    """Waits for what was launched, if anything was."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def stream() -> int:
    """The current stream, as the extension takes it."""
    return 0 if DRY else torch.cuda.current_stream().cuda_stream


def num_multiprocessors() -> int:
    return 132 if DRY else torch.cuda.get_device_properties(0).multi_processor_count


def gpu_model() -> str:
    """What plans take the GPU for."""
    if DRY:
        return "h100"
    gpu = torch.cuda.get_device_properties(0)
    return ext.nearest_gpu(gpu.name, gpu.major)


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def error_of(got: torch.Tensor, expected: torch.Tensor) -> float:
    """|got - expected| / |expected|, Euclidean. Raises AssertionError where `got` is not finite."""
    got, expected = got.double().cpu(), expected.double().cpu()
    assert got.isfinite().all(), "not finite"
    return float((got - expected).norm() / expected.norm().clamp_min(1e-30))


def check_error(error: float, bound: float) -> None:
    assert error <= bound, f"relative error {error:.3g}, allowed {bound}"


def num_turns(num_bytes: int) -> int:
    """How many copies of so many bytes are together larger than the L2 cache."""
    return min(max(1, math.ceil(ROTATED_BYTES / max(num_bytes, 1))), MAX_TURNS)


def copies(*tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """The tensors and as many copies of them as a call after call needs to find none of them in the L2 cache."""
    turns = num_turns(sum(tensor.nbytes for tensor in tensors))
    return [tensors, *(tuple(tensor.clone() for tensor in tensors) for _ in range(turns - 1))]


def seconds(run: Callable[[int], object], turns: int) -> float:
    """Median seconds of one call of run(i), i < turns. All of them are one CUDA graph, so no launch by the host is in
    it; each turn should have memory of its own (`copies`). Of a dry run one call, by the clock."""
    for turn in range(min(2, turns)):
        run(turn)
    synchronize()
    if DRY:
        begin_s = time.perf_counter()
        run(0)
        return time.perf_counter() - begin_s
    calls = max(turns, 4)  # a short graph would time its own start
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in range(calls):
            run(call % turns)
    times = []
    for _ in range(NUM_WARM_UPS + NUM_SAMPLES):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / calls)
    return statistics.median(times[NUM_WARM_UPS:])
