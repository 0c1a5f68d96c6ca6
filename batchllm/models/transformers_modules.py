"""Our modules in place of transformers': products by `Linear`, and operations of `Ops`.

No name is trusted: products are found by tracing a pass, and a replacement for a norm or an MLP must give the same
results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from batchllm.device.linear import Linear
from batchllm.device.ops import CpuOps, Ops
from batchllm.models.transformers_attention import AttentionCall, hand_attention_to

TRIED_ROWS, SMALL = 4, 1e-3
EPS_NAMES = ("variance_epsilon", "eps")
# The projections of a gated MLP, in the order of its product; the last one goes back.
GATED_MLPS = (("gate_proj", "up_proj", "down_proj"), ("gate_up_proj", "down_proj"))
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

    def forward(self, x: Tensor) -> Tensor:
        rows = self.current.rows
        y: Tensor = self.module(x if rows is None else x[:, rows])
        if rows is None:
            return y
        return y.new_zeros(*x.shape[:-1], y.shape[-1]).index_copy_(1, rows.long(), y)


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
    """down(silu(gate) * up)"""

    def __init__(self, gate_up: Linear, down: Linear, current: Pass) -> None:
        super().__init__()
        self.gate_up, self.down, self.current = gate_up, down, current

    def forward(self, x: Tensor) -> Tensor:
        gate_up = self.gate_up(x.reshape(-1, x.shape[-1]))
        activated = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        self.current.ops.silu_and_mul(gate_up, out=activated)
        return self.down(activated).view(x.shape)


@dataclass
class Product:
    """A module of a base model that multiplies with a matrix."""

    name: str
    module: nn.Module
    group: int  # the same for products with one input, which are computed together
    is_last: bool  # whether it works on single rows after the attention of the last layer


def replace_modules(model: PreTrainedModel, current: Pass) -> list[Linear]:
    """Replaces modules by ours where possible. Returns the products, which are to be packed."""
    base: Any = model.base_model
    linears: list[Linear] = []

    def put(name: str, module: nn.Module, is_last: bool = False) -> None:
        parent, _, own = name.rpartition(".")
        setattr(base.get_submodule(parent), own, LastRows(module, current) if is_last else module)

    products = traced_products(base)
    for name, module in list(base.named_modules()):
        inside = [product for product in products if product.name.startswith(f"{name}.")]
        if inside and (mlp := gated_mlp(module, current)) is not None:
            put(name, mlp, inside[0].is_last)
            products = [product for product in products if product not in inside]
            linears += [mlp.gate_up, mlp.down]
        elif (norm := rms_norm(module, current)) is not None:
            put(name, norm)
    for _, of_group in groupby(products, key=lambda product: product.group):
        group = list(of_group)
        linears.append(joined([product.module for product in group]))
        shared, begin = JoinedProduct(linears[-1]), 0
        for product in group:
            end = begin + matrix(product.module).shape[0]
            put(product.name, PackedLinear(shared, slice(begin, end)), product.is_last)
            begin = end
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        linears.append(joined([head]))
        model.set_output_embeddings(PackedLinear(JoinedProduct(linears[-1]), slice(0, head.out_features)))
    return linears


def traced_products(base: PreTrainedModel) -> list[Product]:
    """Products in the order of a pass; those not computed exactly once come last, each by itself."""
    modules = {module: name for name, module in base.named_modules() if type(module) in (nn.Linear, Conv1D)}
    calls: list[tuple[nn.Module, Tensor, int]] = []  # with the number of layers that have attended
    num_attended = 0

    def attend(call: AttentionCall) -> Tensor:
        nonlocal num_attended
        num_attended += 1
        return call.query.transpose(1, 2)

    def note(module: nn.Module, arguments: tuple[Tensor]) -> None:
        calls.append((module, arguments[0], num_attended))

    hooks = [module.register_forward_pre_hook(note) for module in modules]
    hand_attention_to(attend, base)
    token_ids = torch.arange(TRIED_ROWS)[None]
    base(input_ids=token_ids, position_ids=token_ids, use_cache=False)
    for hook in hooks:
        hook.remove()

    times = Counter(module for module, _, _ in calls)
    products: list[Product] = []
    previous: Tensor | None = None
    for module, x, attended in calls:
        if times[module] > 1:
            continue
        is_last = attended == num_attended and x.shape[:2] == (1, TRIED_ROWS)
        joins = x is previous and not is_last and (module.bias is None) == (products[-1].module.bias is None)
        group = len(products) if not joins else products[-1].group
        products.append(Product(modules[module], module, group, is_last))
        previous = x
    alone = [module for module in modules if times[module] != 1]
    return products + [Product(modules[module], module, -1 - i, False) for i, module in enumerate(alone)]


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
        if gives_the_same(mlp, module, mlp.down.weight.shape[0]):
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
        if torch.equal(stored.float(), exact) and gives_the_same(norm, module, len(weight)):
            return norm
    return None


def is_silu(activation: nn.Module) -> bool:
    x = torch.linspace(-8, 8, 65)
    try:
        return torch.allclose(activation(x), F.silu(x), atol=1e-6)
    except Exception:  # it is not an activation
        return False


def gives_the_same(ours: nn.Module, theirs: nn.Module, size: int) -> bool:
    """Compares on rows [1, TRIED_ROWS, size] of ordinary and of small numbers, in the model's dtype."""
    dtype = next(theirs.parameters()).dtype
    x = torch.randn(1, TRIED_ROWS, size, generator=torch.Generator().manual_seed(0))
    x[:, TRIED_ROWS // 2 :] *= SMALL
    x = x.to(dtype)
    expected = theirs(x.clone())
    error, scale = (ours(x) - expected).float().abs().amax(-1), expected.float().abs().amax(-1)
    return bool((error <= TOLERANCES[dtype] * scale).all())
