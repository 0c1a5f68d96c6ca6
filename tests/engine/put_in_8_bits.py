"""8-bit values put into transformers' modules: what products of 8 bits are to give, but for rounding."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchllm.device.rotation import hadamard


def put_in_8_bits(model: nn.Module, num_segments: Callable[[int], int] = lambda size: 1) -> None:
    """Every matrix, and what it reads, takes the values that 8 bits can stand for; both after a Hadamard transform over
    as many segments as `num_segments` says of a row's size."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            matrix = hadamard(num_segments(module.in_features)).to(module.weight.dtype)
            module.weight = nn.Parameter(weight_in_8_bits(module.weight, matrix))
            module.register_forward_pre_hook(lambda _, inputs, matrix=matrix: (in_8_bits(mixed(inputs[0], matrix)),))
        elif hasattr(module, "_apply_gate"):
            module.forward = experts_in_8_bits(module, num_segments)


def experts_in_8_bits(module: nn.Module, num_segments: Callable[[int], int]) -> Callable[..., Tensor]:
    """The forward of transformers' stacked experts: x [T, size], chosen and weights [T, K]."""

    def product(name: str, transposed: bool) -> Callable[[int, Tensor], Tensor]:
        weights, biases = getattr(module, name), getattr(module, f"{name}_bias", None)
        weights = weights.transpose(1, 2) if transposed else weights
        matrix = hadamard(num_segments(weights.shape[2])).to(weights.dtype)
        rounded = [weight_in_8_bits(weight, matrix) for weight in weights]
        return lambda expert, x: F.linear(
            in_8_bits(mixed(x, matrix)), rounded[expert], None if biases is None else biases[expert]
        )

    transposed = hasattr(module, "gate_up_proj_bias")  # gpt-oss
    gate_up, down = (product(name, transposed) for name in ("gate_up_proj", "down_proj"))

    def forward(x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for row, k in torch.cartesian_prod(*map(torch.arange, chosen.shape)).tolist():
            expert = int(chosen[row, k])
            y[row] += weights[row, k] * down(expert, module._apply_gate(gate_up(expert, x[row])))
        return y

    return forward


def weight_in_8_bits(weight: Tensor, matrix: Tensor) -> Tensor:
    """[out_features, in_features]"""
    weight = mixed(weight, matrix)
    pairs = weight[:, 0::2] + weight[:, 1::2]
    scale = torch.maximum(weight.abs().amax(1), pairs.abs().amax(1))[:, None] / 127
    return (weight / scale).round() * scale


def mixed(x: Tensor, matrix: Tensor) -> Tensor:
    """The matrix over the segments of the last dimension."""
    return (matrix @ x.unflatten(-1, (len(matrix), -1))).flatten(-2)


def in_8_bits(x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale
