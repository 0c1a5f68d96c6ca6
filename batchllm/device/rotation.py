"""Orthogonal matrices in closed form, equal on every machine, that spread a few large elements over all."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

LARGEST_FACTOR = 64


def rotated(x: Tensor) -> Tensor:
    """x R over the last dimension of x, float32. R is a product of Hadamard matrices and, for the odd part of the
    dimension's size, of a discrete cosine transform."""
    size = x.shape[-1]
    y = x.contiguous()  # for other strides torch multiplies in its own loops
    for factor in _factors(size):  # each in turn is the last index, then becomes the first
        y = (y.reshape(-1, size // len(factor), len(factor)) @ factor).transpose(1, 2)
    return y.reshape(x.shape)


def rotated_rows(x: Tensor) -> Tensor:
    """R^T x, for x [..., size, n]: the weight whose products are y R if those of x are y."""
    return rotated(x.transpose(-1, -2)).transpose(-1, -2)


def hadamard(size: int) -> Tensor:
    """Orthogonal and symmetric, float32 [size, size]; `size` is a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), dim=1), torch.cat((matrix, -matrix), dim=1)))
    return matrix / math.sqrt(size)


def power_of_two_in(size: int) -> int:
    """The largest that divides `size`."""
    return size & -size


@cache
def _factors(size: int) -> list[Tensor]:
    factors = []
    rest = power_of_two_in(size)
    odd = size // rest
    while rest > 1:
        factor = min(rest, LARGEST_FACTOR)
        factors.append(hadamard(factor))
        rest //= factor
    return factors if odd == 1 else [*factors, _cosines(odd)]


def _cosines(size: int) -> Tensor:
    """The orthogonal discrete cosine transform of the second kind, float32 [size, size]."""
    n = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (n[:, None] + 0.5) * n) * math.sqrt(2 / size)
    matrix[:, 0] /= math.sqrt(2)
    return matrix.float()
