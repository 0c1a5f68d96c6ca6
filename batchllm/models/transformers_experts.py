"""Our experts in place of transformers' stacked ones, whose weights are a tensor for all experts of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchllm.device.linear import Linear
from batchllm.models.transformers_modules import Gate, GatedMlp, Pass, gives_the_same, tried_rows

# The stacked weights, and their biases where there are any.
GATE_UP, DOWN = "gate_up_proj", "down_proj"
BIASES = {GATE_UP: f"{GATE_UP}_bias", DOWN: f"{DOWN}_bias"}
LARGEST = 100.0  # of the numbers on which a gate is tried, beyond those at which models cut them off


class Experts(nn.Module):
    """The weighted sum of what a row's experts make of it. An expert multiplies all its rows at once."""

    def __init__(self, mlps: Sequence[GatedMlp]) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(mlps)
        self.linears = [linear for mlp in mlps for linear in (mlp.gate_up, mlp.down)]

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """x [T, size] through the experts chosen for each row, int64 [T, K], weighted by weights [T, K]. A row's sum
        is in the order of its K experts, whatever the other rows."""
        by_expert = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=len(self.mlps)).tolist()
        results = x.new_empty(len(by_expert), x.shape[1])
        for mlp, of_expert in zip(self.mlps, by_expert.split(counts), strict=True):
            if len(of_expert):
                results[of_expert] = mlp(x[of_expert // chosen.shape[1]])
        weighted: Tensor = results.unflatten(0, chosen.shape) * weights[..., None]
        return weighted.sum(dim=1, dtype=torch.float32).to(x.dtype)


def has_experts(module: nn.Module) -> bool:
    """Whether it has weights of three dimensions."""
    return any(parameter.dim() == 3 for parameter in module.parameters(recurse=False))


def stacked_experts(module: Any, arguments: tuple[Any, ...], current: Pass) -> Experts | None:
    """Takes the weights from the module, if ours give the same. arguments: those of a call of the module."""
    stacked = {name: parameter.detach() for name, parameter in module.named_parameters()}
    gate: Gate | None = getattr(module, "_apply_gate", None)
    if not {GATE_UP, DOWN} <= stacked.keys() <= {GATE_UP, DOWN, *BIASES.values()} or gate is None:
        return None
    if not are_routed_rows(arguments):
        return None
    x, chosen, weights = arguments
    if not has_linear_layout(stacked[GATE_UP], stacked[DOWN], x.shape[1]):
        stacked |= {name: stacked[name].transpose(1, 2) for name in (GATE_UP, DOWN)}
        if not has_linear_layout(stacked[GATE_UP], stacked[DOWN], x.shape[1]):
            return None
    gate_ups, downs = (unstacked(stacked[name], stacked.get(BIASES[name])) for name in (GATE_UP, DOWN))
    own_gate = None if is_silu_and_mul(gate) else gate
    experts = Experts([GatedMlp(*pair, current, own_gate) for pair in zip(gate_ups, downs, strict=True)])
    # Every expert is tried, each on as many rows as a row has experts.
    num_experts, num_chosen = len(downs), chosen.shape[1]
    tried = (torch.arange(num_experts)[:, None] + torch.arange(num_chosen)) % num_experts
    scores = torch.rand(tried.shape, generator=torch.Generator().manual_seed(0)).to(weights.dtype)
    if not gives_the_same(experts, module, tried_rows(module, x.shape[1], num_experts), tried, scores):
        return None
    for name in stacked:
        delattr(module, name)
    return experts


def are_routed_rows(arguments: tuple[Any, ...]) -> bool:
    """Whether they are x [T, size], the experts of each row, int64 [T, K], and their weights [T, K]."""
    if len(arguments) != 3 or not all(isinstance(argument, Tensor) and argument.dim() == 2 for argument in arguments):
        return False
    x, chosen, weights = arguments
    return len(x) == len(chosen) and chosen.dtype == torch.int64 and chosen.shape == weights.shape


def has_linear_layout(gate_up: Tensor, down: Tensor, hidden: int) -> bool:
    """Whether each expert has weights [out_features, in_features]."""
    num_experts, _, size = down.shape
    return gate_up.shape == (num_experts, 2 * size, hidden) and down.shape == (num_experts, hidden, size)


def unstacked(weights: Tensor, biases: Tensor | None) -> list[Linear]:
    """The product of each expert: views, if the layout is a Linear's."""
    each = biases if biases is not None else [None] * len(weights)
    return [Linear(weight.contiguous(), bias) for weight, bias in zip(weights, each, strict=True)]


def is_silu_and_mul(gate: Gate) -> bool:
    side = torch.linspace(-LARGEST, LARGEST, 64)
    gate_up = torch.cartesian_prod(side, side).view(-1, 4)
    return torch.allclose(gate(gate_up), F.silu(gate_up[:, :2]) * gate_up[:, 2:], atol=1e-6)
