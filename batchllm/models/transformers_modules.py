"""Our modules in place of transformers': products by `Linear`, and operations of `Ops`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from batchllm.device.linear import Linear
from batchllm.device.ops import CpuOps, Ops

TRIED_ROWS, SMALL = 4, 1e-3
EPS_NAMES = ("variance_epsilon", "eps")
# The projections of a gated MLP, in the order of its product; the last one goes back.
GATED_MLPS = (("gate_proj", "up_proj", "down_proj"), ("gate_up_proj", "down_proj"))
Gate = Callable[[Tensor], Tensor]  # [rows, 2 size] -> [rows, size]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass
class Pass:
    """What modules read about the current pass."""

    ops: Ops = field(default_factory=CpuOps)
    rows: Tensor | None = None  # int32 [R]: those that continue after the attention of the last layer; None: all


class PackedLinear(nn.Module):
    """A product, or one of several with the same input, which the first computes for all."""

    def __init__(self, product: JoinedProduct, part: slice) -> None:
        super().__init__()
        self.product, self.part = product, part
        weight = product.linear.weight
        # For modules that ask for its shape or dtype. It has no elements, so whoever reads those fails.
        self.weight = weight.new_empty(part.stop - part.start, weight.shape[1], device="meta")

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.part)


class JoinedProduct:
    """Keeps the product of the last input until its last columns have been taken."""

    def __init__(self, linear: Linear) -> None:
        self.linear = linear
        self._x: Tensor | None = None
        self._y: Tensor

    def __call__(self, x: Tensor, part: slice) -> Tensor:
        """x [..., in_features] -> the columns `part` of the product."""
        if x is not self._x:
            y = self.linear(x.reshape(-1, x.shape[-1]))
            self._x, self._y = x, y.view(*x.shape[:-1], y.shape[-1])
        y = self._y[..., part]
        if part.stop == self._y.shape[-1]:  # no other part needs it
            self._x = None
            del self._y
        return y


class LastRows(nn.Module):
    """A module that works on single rows; after the attention of the last layer, only on those that continue."""

    def __init__(self, module: nn.Module, current: Pass) -> None:
        super().__init__()
        self.module, self.current = module, current

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Of each tensor the last dimension but one is the rows'."""
        rows = self.current.rows
        if rows is None:
            y: Tensor = self.module(x, *others)
            return y
        y = self.module(*(tensor.index_select(-2, rows) for tensor in (x, *others)))
        return y.new_zeros(*x.shape[:-1], y.shape[-1]).index_copy_(-2, rows.long(), y)


class FusedRmsNorm(nn.Module):
    def __init__(self, weight: Tensor, eps: float, current: Pass) -> None:
        super().__init__()
        self.weight, self.eps, self.current = nn.Parameter(weight, requires_grad=False), eps, current

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size]"""
        rows = x.flatten(0, -2 if x.dim() < 4 else -3)  # [rows, size] or [rows, heads, size]
        out = rows.new_empty(rows.shape)
        self.current.ops.rms_norm(rows, self.weight, eps=self.eps, out=out)
        return out.view(x.shape)


class GatedMlp(nn.Module):
    """down(gate(gate_up))"""

    def __init__(self, gate_up: Linear, down: Linear, current: Pass, gate: Gate | None = None) -> None:
        """gate: silu(gate) * up if there is none."""
        super().__init__()
        self.gate_up, self.down, self.current, self.gate = gate_up, down, current, gate

    def forward(self, x: Tensor) -> Tensor:
        gate_up = self.gate_up(x.reshape(-1, x.shape[-1]))
        if self.gate is not None:
            activated = self.gate(gate_up)
        else:
            activated = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
            self.current.ops.silu_and_mul(gate_up, out=activated)
        return self.down(activated).view(x.shape)


def matrix(module: Any) -> Tensor:
    """[out_features, in_features]"""
    weight: Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def joined(modules: Sequence[Any]) -> Linear:
    """Joins products with the same input."""
    weights = [matrix(module) for module in modules]
    biases = [module.bias.detach() for module in modules if module.bias is not None]
    if len(modules) == 1:
        return Linear(weights[0].contiguous(), biases[0] if biases else None)
    return Linear(torch.cat(weights), torch.cat(biases) if biases else None)


def gated_mlp(module: nn.Module, current: Pass) -> GatedMlp | None:
    for *gate_up, down in GATED_MLPS:
        projections: list[Any] = [getattr(module, name, None) for name in (*gate_up, down)]
        if not all(type(projection) is nn.Linear for projection in projections):
            continue
        activations = [child for child in module.children() if child not in projections]
        if len(activations) != 1 or not is_silu(activations[0]):
            continue
        mlp = GatedMlp(joined(projections[:-1]), joined(projections[-1:]), current)
        if gives_the_same(mlp, module, tried_rows(module, mlp.down.weight.shape[0])[None]):
            return mlp
    return None


def rms_norm(module: nn.Module, current: Pass) -> FusedRmsNorm | None:
    parameters = dict(module.named_parameters())
    eps = next((getattr(module, name) for name in EPS_NAMES if hasattr(module, name)), None)
    if list(parameters) != ["weight"] or parameters["weight"].dim() != 1 or not isinstance(eps, float):
        return None
    weight = parameters["weight"].detach()
    for stored, exact in ((weight, weight.float()), ((1 + weight.float()).to(weight.dtype), 1 + weight.float())):
        norm = FusedRmsNorm(stored, eps, current)
        if torch.equal(stored.float(), exact) and gives_the_same(norm, module, tried_rows(module, len(weight))[None]):
            return norm
    return None


def is_silu(activation: nn.Module) -> bool:
    x = torch.linspace(-8, 8, 65)
    try:
        return torch.allclose(activation(x), F.silu(x), atol=1e-6)
    except Exception:  # it is not an activation
        return False


def tried_rows(module: nn.Module, size: int, num_rows: int = TRIED_ROWS) -> Tensor:
    """[num_rows, size] of ordinary and of small numbers, in the module's dtype."""
    x = torch.randn(num_rows, size, generator=torch.Generator().manual_seed(0))
    x[num_rows // 2 :] *= SMALL
    return x.to(next(module.parameters()).dtype)


def gives_the_same(ours: nn.Module, theirs: nn.Module, x: Tensor, *others: Tensor) -> bool:
    """Compares what they make of tried_rows."""
    expected = theirs(x.clone(), *others)
    error, scale = (ours(x, *others) - expected).float().abs().amax(-1), expected.float().abs().amax(-1)
    return bool((error <= TOLERANCES[x.dtype] * scale).all())
