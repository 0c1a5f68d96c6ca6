"""LLMs on the GPU, in a dry run on the CPU in its place (tests/engine/fake_gpu.py); with weights of a directory, or
with random ones that are made where they are needed. All that the kit knows of the driver's inside stands here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from batchllm import LLM
from benchmarks.gpu_day.results import DRY

STANDARD_DEVIATION = 0.02


def gpu_llm(directory: Path, **options: Any) -> LLM:
    """LLM(directory, device="cuda", **options)."""
    if not DRY:
        return LLM(directory, device="cuda", **options)
    from tests.engine.fake_gpu import on_fake_gpu

    return on_fake_gpu(directory, **options)[0]


def random_llm(directory: Path, **options: Any) -> LLM:
    """gpu_llm of a directory that needs a config.json only."""
    torch.manual_seed(0)
    with patch("batchllm.models.weights.WeightReader", RandomWeights):
        return gpu_llm(directory, **options)


def watch_captures(llm: LLM) -> list[float]:
    """Seconds of each CUDA graph that is captured from now on; the list grows."""
    gpu, captures = llm.engine.runner.gpu, []
    capture = gpu.capture

    def timed(run: Callable[[], torch.Tensor]) -> Any:
        begin_s = time.perf_counter()
        captured = capture(run)
        captures.append(time.perf_counter() - begin_s)
        return captured

    gpu.capture = timed
    return captures


class RandomWeights:
    """Has every tensor that a WeightReader may be asked for: norms of ones, the others normally distributed."""

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device | str) -> None:
        self.dtype, self.device = dtype, device

    def __contains__(self, name: str) -> bool:
        return True

    def take(self, name: str, *shape: int) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=self.dtype, device=self.device)
        return tensor.fill_(1) if len(shape) == 1 else tensor.normal_(0, STANDARD_DEVIATION)

    def take_stacked(self, num_rows: Mapping[str, int], *row: int) -> torch.Tensor:
        return self.take("", sum(num_rows.values()), *row)

    def drop_copy(self, name: str, *shape: int, of: str) -> None:
        pass

    def finish(self) -> None:
        pass

    def __enter__(self) -> RandomWeights:
        return self

    def __exit__(self, *error: object) -> None:
        pass
