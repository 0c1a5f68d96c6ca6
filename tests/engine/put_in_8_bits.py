"""8-bit values put into transformers' modules: what products of 8 bits are to give, but for rounding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from batchllm.device.rotation import hadamard


def put_in_8_bits(model: nn.Module, num_segments: Callable[[int], int] = lambda size: 1) -> None:
    """Every matrix, and what it reads, takes the values that 8 bits can stand for; both after a Hadamard transform over
    as many segments as `num_segments` says of a row's size."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            matrix = hadamard(num_segments(module.in_features)).to(module.weight.dtype)
            weight = mixed(module.weight, matrix)
            pairs = weight[:, 0::2] + weight[:, 1::2]
            scale = torch.maximum(weight.abs().amax(1), pairs.abs().amax(1))[:, None] / 127
            module.weight = nn.Parameter((weight / scale).round() * scale)
            module.register_forward_pre_hook(lambda _, inputs, matrix=matrix: (in_8_bits(mixed(inputs[0], matrix)),))


def mixed(x: Tensor, matrix: Tensor) -> Tensor:
    """The matrix over the segments of the last dimension."""
    return (matrix @ x.unflatten(-1, (len(matrix), -1))).flatten(-2)


def in_8_bits(x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale
