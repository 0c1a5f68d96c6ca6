"""Matrix products with the model's weights: torch's, by oneDNN with weights packed once if that is faster."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from batchllm.device.int8 import Int8Linear, segments_of
from batchllm.device.packed import can_pack, packed, packed_linear
from batchllm.device.product_times import gains_of_packing, mean_gain

ANY_NUMBER = 1 << 62  # of rows


@dataclass
class Linear:
    """y = x weight^T + bias, for x of shape [rows, in_features]."""

    weight: Tensor  # [out_features, in_features]; an opaque oneDNN tensor once packed
    bias: Tensor | None = None  # [out_features]
    plain: Tensor | None = None  # the plain weight beside a packed one, for the rows in `plain_rows`
    plain_rows: list[range] = field(default_factory=list)  # numbers of rows for which it is faster
    int8: Int8Linear | None = None  # instead of it, once quantised

    @property
    def is_packed(self) -> bool:
        return bool(self.weight.is_mkldnn)

    def pack(self, *, keep_plain: bool = False) -> None:
        """Converts a CPU weight to oneDNN's own layout, if `can_pack` allows it and it is faster.

        In bfloat16 `F.linear` does that in every call, which costs relatively more for fewer rows; in float32 it calls
        MKL, which reads the plain weight.

        keep_plain: whether the weight is in memory anyway. Then each number of rows uses its faster way; otherwise all
        use the one that is faster in the mean.
        """
        if self.is_packed or not self.weight.is_cpu or not can_pack(self.weight.dtype):
            return
        out_features, in_features = self.weight.shape
        gains = gains_of_packing(out_features, in_features, self.weight.dtype, torch.get_num_threads())
        if keep_plain:
            if all(gain < 1 for gain in gains.values()):
                return
            self.plain_rows = runs_below_one(gains)
            self.plain = self.weight if self.plain_rows else None
        elif mean_gain(gains) < 1:
            return
        self.weight = packed(self.weight)

    def quantize(self) -> None:
        """Replaces a CPU weight by one in 8 bits, to be multiplied with 8-bit rows."""
        size = self.weight.shape[1]
        self.int8 = Int8Linear(self.weight, self.bias, num_segments=segments_of(size))
        self.weight = self.weight.new_empty(0, size)

    def __call__(self, x: Tensor) -> Tensor:
        if self.int8 is not None:
            return self.int8(x)
        if not self.is_packed:
            return F.linear(x, self.weight, self.bias)
        if self.plain is not None and any(len(x) in rows for rows in self.plain_rows):
            return F.linear(x, self.plain, self.bias)
        return packed_linear(x, self.weight, self.bias)

    @property
    def name(self) -> str:
        """Its shape and its type."""
        if self.int8 is not None:
            return self.int8.name
        return name_of(self.weight)

    @property
    def way(self) -> str:
        """How it multiplies, in words."""
        if self.int8 is not None:
            return self.int8.way
        if not self.is_packed:
            return "as it is"
        if not self.plain_rows:
            return "packed"
        runs = [f"{r.start} to {r.stop - 1}" if r.stop < ANY_NUMBER else f"{r.start} or more" for r in self.plain_rows]
        return f"packed; as it is for {', '.join(runs)} rows"


def runs_below_one(gains: dict[int, float]) -> list[range]:
    """The numbers of rows whose gain is below 1, by the largest measured number not above them (or the first)."""
    measured = sorted(gains)
    begins, ends = [0, *measured[1:]], [*measured[1:], ANY_NUMBER]
    runs: list[range] = []
    for rows, begin, end in zip(measured, begins, ends, strict=True):
        if gains[rows] >= 1:
            continue
        if runs and runs[-1].stop == begin:
            runs[-1] = range(runs[-1].start, end)
        else:
            runs.append(range(begin, end))
    return runs


def name_of(weight: Tensor) -> str:
    """Its shape and its type."""
    return f"{'x'.join(map(str, weight.shape))} {str(weight.dtype).removeprefix('torch.')}"


def ways_of(linears: Iterable[Linear | Int8Linear]) -> dict[str, str]:
    """By shape and type, "3072x576 float32", how such products are made."""
    return {linear.name: linear.way for linear in linears}
