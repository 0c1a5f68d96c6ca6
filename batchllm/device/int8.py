"""Matrix products in 8 bits on a CPU, and the operations between them.

A row of activations is stored as a scale, its largest magnitude / 127 in float32, and a byte per element. A weight has
one scale per output, and its bytes are bounded in pairs, so that all sums of a product are exact with or without VNNI:
a row's bits do not depend on the rows beside it, and one set of weights serves every CPU.

oneDNN's product without VNNI adds the products of two neighbouring columns in 16 bits, and saturates. 255 times the sum
of two weights fits if the sum is at most 128, which costs little of their 8 bits. If a CPU pairs other columns
(`pairs_are_exact`), weights have half the range.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import batchllm_ext as ext
from batchllm.device.rotation import hadamard, power_of_two_in

INT8_MAX = 127
ZERO_POINT = 128  # the byte of 0
# Larger results would be newly mapped in every call: glibc returns blocks of 32 MiB or more at once.
MAX_PRODUCT_BYTES = 24 << 20
FLOATS_AT_ONCE = 1 << 18  # elements of a weight in float32 while it is quantised
MAX_SEGMENTS = 64  # of a Hadamard transform at run time; more gain nothing


@dataclass(frozen=True)
class Int8Rows:
    """T rows; an element represents scales[row] * (values - 128)."""

    values: Tensor  # uint8 [T, size]
    scales: Tensor  # float32 [T]

    @classmethod
    def empty(cls, num_rows: int, size: int) -> Int8Rows:
        return cls(torch.empty(num_rows, size, dtype=torch.uint8), torch.empty(num_rows))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> Int8Rows:
        return Int8Rows(self.values[rows], self.scales[rows])


@dataclass(frozen=True)
class Products:
    """Represents scales[row] * values + bias."""

    values: Tensor  # float32 [T, size]
    scales: Tensor  # float32 [T]
    bias: Tensor | None  # float32 [size]


class Int8Linear:
    """y = x weight^T + bias, with a weight of 8 bits."""

    def __init__(
        self,
        weight: Tensor | Iterable[Tensor],
        bias: Tensor | None = None,
        *,
        shape: tuple[int, int] | None = None,
        num_segments: int = 1,
    ) -> None:
        """weight: [out_features, in_features], or blocks of rows of a weight of that `shape`, generated one after the
        other. num_segments: it is multiplied with rows after a Hadamard transform over this many segments, and is
        transformed itself, because a few large elements of a row would cost all others their precision."""
        blocks: Iterable[Tensor] = row_blocks(weight) if isinstance(weight, Tensor) else weight
        shape = (weight.shape[0], weight.shape[1]) if isinstance(weight, Tensor) else shape
        assert shape is not None
        self.out_features, self.in_features = shape
        self.num_segments = num_segments
        values, self._scales, sums = quantize_blocks(blocks, shape, num_segments)
        # Passed as the bias: with its own zero point, oneDNN would sum the weight in every call.
        self._zero = -ZERO_POINT * sums * self._scales
        self._weight_zero_points = torch.zeros(self.out_features, dtype=torch.int64)
        self._packed = torch.ops.onednn.qlinear_prepack.default(values, None)
        self.bias = None if bias is None else bias.float()

    @property
    def name(self) -> str:
        """Its shape and its type."""
        return f"{self.out_features}x{self.in_features} int8"

    @property
    def way(self) -> str:
        """How it multiplies, in words."""
        return "packed"

    def products(self, rows: Int8Rows) -> Products:
        # Without AVX-512, any result type other than float32 uses oneDNN's reference loop, which takes seconds.
        values: Tensor = torch.ops.onednn.qlinear_pointwise.default(
            *(rows.values, 1.0, 0, self._packed, self._scales, self._weight_zero_points, self._zero),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        return Products(values, rows.scales, self.bias)

    def products_in_parts(self, rows: Int8Rows) -> Iterator[tuple[slice, Products]]:
        """Some rows at a time, if all together would take too much memory."""
        rows_at_once = max(1, MAX_PRODUCT_BYTES // (4 * self.out_features))
        for begin in range(0, len(rows), rows_at_once):
            part = slice(begin, begin + rows_at_once)
            yield part, self.products(rows[part])

    def __call__(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """[T, in_features] float32 or bfloat16 -> [T, out_features] of `dtype`, or of x's."""
        rows = Int8Rows.empty(*x.shape)
        quantize(x, out=rows, num_segments=self.num_segments)
        y = x.new_empty(len(x), self.out_features, dtype=dtype)
        for part, products in self.products_in_parts(rows):
            dequantize(products, out=y[part])
            del products  # before there are others
        return y


def quantize(x: Tensor, *, out: Int8Rows, num_segments: int = 1) -> None:
    """Quantises H(x), x [T, size] float32 or bfloat16; H is the Hadamard transform over this many segments of a row."""
    num_threads = torch.get_num_threads()
    ext.quantize_rows(x, out=out.values, scales=out.scales, num_segments=num_segments, num_threads=num_threads)


def norm_quantize(x: Tensor, *, eps: float, out: Int8Rows, delta: Products | None = None) -> None:
    """Quantises x / sqrt(mean(x^2) + eps), x float32 [T, size]. With delta, x += delta before."""
    deltas: dict[str, Any] = {}
    if delta is not None:
        deltas = {"delta": delta.values, "delta_scales": delta.scales, "delta_bias": delta.bias}
    ext.norm_quantize(x, eps=eps, out=out.values, scales=out.scales, **deltas, num_threads=torch.get_num_threads())


def silu_mul_quantize(gate_up: Products, *, out: Int8Rows, num_segments: int) -> None:
    """Quantises H(silu(gate) * up), gate_up [T, 2 size]; H is the Hadamard transform over this many segments of a
    row."""
    ext.silu_mul_quantize(
        gate_up.values,
        gate_up.scales,
        bias=gate_up.bias,
        out=out.values,
        scales=out.scales,
        num_segments=num_segments,
        num_threads=torch.get_num_threads(),
    )


def dequantize(products: Products, *, out: Tensor) -> None:
    """Into [T, size], float32 or bfloat16; may be products.values."""
    num_threads = torch.get_num_threads()
    ext.dequantize_rows(products.values, products.scales, out=out, bias=products.bias, num_threads=num_threads)


def segments_of(size: int) -> int:
    """The number of segments in which a row of that size is transformed."""
    return min(power_of_two_in(size), MAX_SEGMENTS)


def mixed(weight: Tensor, num_segments: int) -> Tensor:
    """Each row through the Hadamard transform, in float32."""
    if num_segments == 1:
        return weight
    segments: Tensor = weight.float().unflatten(1, (num_segments, -1))
    return (hadamard(num_segments) @ segments).flatten(1)


def row_blocks(weight: Tensor) -> Iterator[Tensor]:
    """Views of some rows each."""
    rows_at_once = max(1, FLOATS_AT_ONCE // weight.shape[1])
    return (weight[begin : begin + rows_at_once] for begin in range(0, len(weight), rows_at_once))


def quantize_blocks(
    blocks: Iterable[Tensor], shape: tuple[int, int], num_segments: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a weight of that shape, in blocks of its rows: its values by `quantize_weight`, once mixed, scales,
    and int64 [out_features], the sum of each row's values."""
    values, scales = torch.empty(shape, dtype=torch.int8), torch.empty(shape[0])
    sums = torch.empty(shape[0], dtype=torch.int64)
    begin = 0
    for block in blocks:
        rows = slice(begin, begin + len(block))
        values[rows], scales[rows] = quantize_weight(mixed(block, num_segments))
        sums[rows] = values[rows].sum(dim=1, dtype=torch.int64)
        begin = rows.stop
    return values, scales, sums


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [out_features, in_features] and float32 [out_features] for a finite weight."""
    weight = weight.float()
    largest = weight.abs().amax(dim=1)
    if pairs_are_exact():
        seconds = weight[:, 1::2]
        pairs = weight[:, 0::2][:, : seconds.shape[1]] + seconds
        largest = largest.maximum(F.pad(pairs, (0, 1)).abs().amax(dim=1))  # a single column has none
        scales = largest / INT8_MAX
    else:
        scales = largest / (INT8_MAX // 2)
    scales = scales.clamp(min=1e-30)  # of outputs that are 0
    return (weight / scales[:, None]).round_().to(torch.int8), scales


@cache
def pairs_are_exact() -> bool:
    """Whether products are exact if two neighbouring weights add up to at most 128."""
    weight = torch.tensor([[127, 1], [1, 127], [-127, -1], [64, 64]], dtype=torch.int8).repeat(1, 64)
    packed = torch.ops.onednn.qlinear_prepack.default(weight, None)
    ones, zeros = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int64)
    for num_rows in (1, 64):
        x = torch.full((num_rows, weight.shape[1]), 255, dtype=torch.uint8)
        product = torch.ops.onednn.qlinear_pointwise.default(
            x, 1.0, 0, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        exact = 255.0 * weight.sum(dim=1, dtype=torch.int64)
        if not torch.equal(product, exact.expand(num_rows, -1)):
            return False
    return True


def can_multiply_int8() -> bool:
    """Whether torch has oneDNN's products of 8 bits (private operators, so their absence is no error)."""
    operators: Any = torch.ops.onednn
    names = ("qlinear_prepack", "qlinear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(operators, name) for name in names)
