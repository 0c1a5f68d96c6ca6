"""Matrix products with the model's weights: torch's, by oneDNN with weights packed once where that is faster."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# What a measurement multiplies: as many rows as a step of decodes and a step of prefill have, and of a large weight a
# part, which tells as much as all of it.
MEASURED_ROWS = (16, 256)
MEASURED_OUT_FEATURES = 2048
MEASURED_TURNS = 3


@dataclass
class Linear:
    """y = x weight^T + bias, for x of shape [rows, in_features]."""

    weight: Tensor  # [out_features, in_features]; an opaque oneDNN tensor once packed
    bias: Tensor | None = None  # [out_features]

    @property
    def is_packed(self) -> bool:
        return bool(self.weight.is_mkldnn)

    def pack(self) -> None:
        """Brings the weight of a CPU into oneDNN's own layout, where `can_pack` allows it and it is the faster way.

        In bfloat16 `F.linear` does that in every call, which costs the more of the product the fewer rows it has; in
        float32 it calls MKL, which reads the weight as it is.
        """
        if self.is_packed or not self.weight.is_cpu or not can_pack(self.weight.dtype):
            return
        if packing_pays(*self.weight.shape, self.weight.dtype, torch.get_num_threads()):
            self.weight = packed(self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        if self.is_packed:
            return packed_linear(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)


def packed(weight: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._reorder_linear_weight.default(weight, None)
    return result


def packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # The overload by name, so that no call has to find it.
    y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return y


def can_pack(dtype: torch.dtype) -> bool:
    """Whether torch has what its compiler uses to freeze a linear layer (private operators, so their absence is no
    error), and the CPU multiplies this type."""
    operators: Any = torch.ops.mkldnn
    return (
        dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and all(hasattr(operators, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
        and (dtype == torch.float32 or bool(operators._is_mkldnn_bf16_supported()))
    )


@cache
def packing_pays(out_features: int, in_features: int, dtype: torch.dtype, num_threads: int) -> bool:
    """Whether products of this shape with as many threads take less time packed, by a measurement of some tens of
    milliseconds, which is made once in a process."""
    weight = torch.ones(min(out_features, MEASURED_OUT_FEATURES), in_features, dtype=dtype)
    weight_packed = packed(weight)
    gains = []  # seconds as it is, by seconds packed
    for num_rows in MEASURED_ROWS:
        x = torch.ones(num_rows, in_features, dtype=dtype)
        turns = [
            (seconds(partial(F.linear, x, weight)), seconds(partial(packed_linear, x, weight_packed, None)))
            for _ in range(1 + MEASURED_TURNS)
        ][1:]  # the first warms up
        plain_s, packed_s = (min(times) for times in zip(*turns, strict=True))
        gains.append(plain_s / packed_s)
    return math.prod(gains) >= 1


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
