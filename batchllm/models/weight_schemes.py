"""How a quantised weight of a linear layer, [out_features, in_features], is stored and dequantised.

Every scheme has w = (q - zero) * scale in float32, with a scale and a zero per block of elements. They differ in what
is packed into what, and in which direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]  # the tensors of a weight, by their suffixes
Shape = tuple[int, ...]
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INT32 = (torch.int32,)
# Column j of eight is in nibble AWQ_ORDER[j] of a word.
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True)
class Part:
    """The required dtype and shapes of a tensor."""

    shapes: tuple[Shape, ...]  # one of these
    dtypes: tuple[torch.dtype, ...]
    is_needed: bool = True


class WeightScheme(Protocol):
    @property
    def mark(self) -> str:
        """The suffix of the tensor that only a weight of this scheme has."""

    def shape(self, parts: Parts) -> Shape:
        """The shape of the weight, from the tensor that has its elements. Raises KeyError if that is missing."""

    def parts(self, out_features: int, in_features: int) -> dict[str, Part]:
        """The parts of a weight of that shape, by suffix."""

    def rows(self, parts: Parts, in_features: int, begin: int, end: int) -> Tensor:
        """Rows [begin, end) of the weight, float32, `begin` a multiple of tensor_source.ROWS. Raises ValueError for
        impossible values."""


@dataclass(frozen=True)
class GptqWeight:
    """Packed along in_features, and transposed: qweight [in / per_word, out], scales [groups, out]."""

    mark: ClassVar[str] = "qweight"
    bits: int
    group_size: int  # -1: all of in_features
    zero_offset: int  # added to a stored zero

    @property
    def per_word(self) -> int:
        return 32 // self.bits

    def shape(self, parts: Parts) -> Shape:
        num_words, out_features = parts["qweight"].shape
        return out_features, num_words * self.per_word

    def parts(self, out_features: int, in_features: int) -> dict[str, Part]:
        groups = num_groups(in_features, self.group_size)
        return {
            "qweight": Part(((in_features // self.per_word, out_features),), INT32),
            "qzeros": Part(((groups, -(-out_features // self.per_word)),), INT32),
            "scales": Part(((groups, out_features),), FLOATS),
            "g_idx": Part(((in_features,),), INT32, is_needed=False),
        }

    def rows(self, parts: Parts, in_features: int, begin: int, end: int) -> Tensor:
        words = slice(begin // self.per_word, -(-end // self.per_word))
        zeros = unpacked(parts["qzeros"][:, words], self.bits)[:, : end - begin] + self.zero_offset
        scales = parts["scales"][:, begin:end]
        group_of = group_of_columns(parts.get("g_idx"), in_features, self.group_size, len(scales))
        return grouped(unpacked(parts["qweight"][:, begin:end].t(), self.bits), zeros.t(), scales.t(), group_of)


@dataclass(frozen=True)
class AwqWeight:
    """Four bits, packed along out_features, and transposed: qweight [in, out / 8], scales [groups, out]."""

    mark: ClassVar[str] = "qweight"
    group_size: int

    def shape(self, parts: Parts) -> Shape:
        in_features, num_words = parts["qweight"].shape
        return num_words * 8, in_features

    def parts(self, out_features: int, in_features: int) -> dict[str, Part]:
        groups = num_groups(in_features, self.group_size)
        return {
            "qweight": Part(((in_features, out_features // 8),), INT32),
            "qzeros": Part(((groups, out_features // 8),), INT32),
            "scales": Part(((groups, out_features),), FLOATS),
        }

    def rows(self, parts: Parts, in_features: int, begin: int, end: int) -> Tensor:
        values, zeros = (self._columns(parts[name][:, begin // 8 : end // 8]) for name in ("qweight", "qzeros"))
        scales = parts["scales"][:, begin:end]
        group_of = group_of_columns(None, in_features, self.group_size, len(scales))
        return grouped(values.t(), zeros.t(), scales.t(), group_of)

    def _columns(self, words: Tensor) -> Tensor:
        return unpacked(words, 4).view(*words.shape, 8)[..., AWQ_ORDER].flatten(1)


@dataclass(frozen=True)
class PackedWeight:
    """Of compressed-tensors: weight_packed [out, in / per_word], rounded up, weight_scale [out, groups], and zeros
    packed along out_features. Values are stored with half their range added."""

    mark: ClassVar[str] = "weight_packed"
    bits: int
    group_size: int  # -1: all of in_features
    is_symmetric: bool

    @property
    def per_word(self) -> int:
        return 32 // self.bits

    def shape(self, parts: Parts) -> Shape:
        return tuple(parts["weight_shape"].tolist())

    def parts(self, out_features: int, in_features: int) -> dict[str, Part]:
        groups = num_groups(in_features, self.group_size)
        zeros = {} if self.is_symmetric else {"weight_zero_point": Part(((self._words(out_features), groups),), INT32)}
        return zeros | {
            "weight_packed": Part(((out_features, self._words(in_features)),), INT32),
            "weight_scale": Part(((out_features, groups),), FLOATS),
            "weight_shape": Part(((2,),), (torch.int64, torch.int32)),
            "weight_g_idx": Part(((in_features,),), INT32, is_needed=False),
        }

    def rows(self, parts: Parts, in_features: int, begin: int, end: int) -> Tensor:
        half = 1 << (self.bits - 1)
        scales = parts["weight_scale"][begin:end]
        values = unpacked(parts["weight_packed"][begin:end], self.bits)[:, :in_features]
        zeros = torch.full_like(scales, half, dtype=torch.int32)
        if not self.is_symmetric:
            words = parts["weight_zero_point"][begin // self.per_word : self._words(end)]
            zeros = unpacked(words.t(), self.bits)[:, : end - begin].t()
        group_of = group_of_columns(parts.get("weight_g_idx"), in_features, self.group_size, scales.shape[1])
        return grouped(values, zeros, scales, group_of)

    def _words(self, count: int) -> int:
        return -(-count // self.per_word)


@dataclass(frozen=True)
class ScaledWeight:
    """Eight bits per element, and a scale for each block of rows and columns."""

    mark: str  # the suffix of the scales
    dtype: torch.dtype
    blocks: tuple[tuple[int, int], ...]  # (rows, columns) of a block, or of one of these; -1: all
    zero: str | None = None  # the suffix of the zeros

    def shape(self, parts: Parts) -> Shape:
        return tuple(parts["weight"].shape)

    def parts(self, out_features: int, in_features: int) -> dict[str, Part]:
        shapes: list[Shape] = []
        for rows, columns in self.blocks:
            grid = (num_groups(out_features, rows), num_groups(in_features, columns))
            shapes += [grid, *([grid[:1]] if grid[1] == 1 else []), *([()] if grid == (1, 1) else [])]
        zeros = {self.zero: Part(tuple(shapes), (self.dtype,))} if self.zero else {}
        return zeros | {
            "weight": Part(((out_features, in_features),), (self.dtype,)),
            self.mark: Part(tuple(shapes), FLOATS),
        }

    def rows(self, parts: Parts, in_features: int, begin: int, end: int) -> Tensor:
        out_features = len(parts["weight"])
        scale = _as_grid(parts[self.mark])
        rows, columns = next(
            (rows, columns)
            for rows, columns in self.blocks
            if scale.shape == (num_groups(out_features, rows), num_groups(in_features, columns))
        )
        row, column = (torch.arange(begin, end), torch.arange(in_features))
        place = (row // rows if rows > 0 else row * 0)[:, None], column // columns if columns > 0 else column * 0
        values = parts["weight"][begin:end].float()
        if self.zero:
            values -= _as_grid(parts[self.zero]).float()[place]
        return values * scale.float()[place]


def num_groups(count: int, group_size: int) -> int:
    return 1 if group_size < 0 else -(-count // group_size)


def group_of_columns(stored: Tensor | None, in_features: int, group_size: int, groups: int) -> Tensor:
    """[in_features], the group of each column: stored, or consecutive. Some exporters write -1 for the latter."""
    if stored is None or bool((stored < 0).any()):
        columns = torch.arange(in_features)
        return columns * 0 if group_size < 0 else columns // group_size
    if (last := int(stored.max())) >= groups:
        raise ValueError(f"a column is said to be in group {last}, of {groups}")
    return stored.long()


def grouped(values: Tensor, zeros: Tensor, scales: Tensor, group_of: Tensor) -> Tensor:
    """values [rows, columns], zeros and scales [rows, groups] -> the weight, float32."""
    return (values - zeros[:, group_of]).float() * scales[:, group_of].float()


def unpacked(words: Tensor, bits: int) -> Tensor:
    """[n, words] int32 -> [n, words * 32 / bits] int32, the low bits of a word first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(1)


def _as_grid(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, 1) if tensor.ndim < 2 else tensor
