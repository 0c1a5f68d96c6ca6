"""Which of transformers' modules ours replace.

No name is trusted: products and experts are found by tracing a pass, and a replacement for a norm, an MLP or experts
must give the same results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from batchllm.device.linear import Linear
from batchllm.models.transformers_attention import AttentionCall, hand_attention_to
from batchllm.models.transformers_experts import has_experts, stacked_experts
from batchllm.models.transformers_modules import (
    TRIED_ROWS,
    JoinedProduct,
    LastRows,
    PackedLinear,
    Pass,
    gated_mlp,
    joined,
    matrix,
    rms_norm,
)


@dataclass
class Call:
    """Of a module of a base model, in a pass of TRIED_ROWS rows."""

    module: nn.Module
    arguments: tuple[Any, ...]  # but those passed by name
    is_last: bool  # whether all layers have attended


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

    calls = traced_calls(base)
    products = traced_products(base, calls)
    for name, module in list(base.named_modules()):
        inside = [product for product in products if product.name.startswith(f"{name}.")]
        of_module = [call for call in calls if call.module is module]
        if inside and (mlp := gated_mlp(module, current)) is not None:
            put(name, mlp, inside[0].is_last)
            products = [product for product in products if product not in inside]
            linears += [mlp.gate_up, mlp.down]
        elif (norm := rms_norm(module, current)) is not None:
            put(name, norm)
        elif len(of_module) == 1 and (experts := stacked_experts(module, of_module[0].arguments, current)) is not None:
            put(name, experts, of_module[0].is_last)
            linears += experts.linears
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


def traced_calls(base: PreTrainedModel) -> list[Call]:
    """Those of modules that multiply, in the order of a pass."""
    noted: list[tuple[nn.Module, tuple[Any, ...], int]] = []  # with the number of layers that have attended
    num_attended = 0

    def attend(call: AttentionCall) -> Tensor:
        nonlocal num_attended
        num_attended += 1
        return call.query.transpose(1, 2)

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        noted.append((module, arguments, num_attended))

    multiply = [module for module in base.modules() if is_product(module) or has_experts(module)]
    hooks = [module.register_forward_pre_hook(note) for module in multiply]
    hand_attention_to(attend, base)
    token_ids = torch.arange(TRIED_ROWS)[None]
    base(input_ids=token_ids, position_ids=token_ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [Call(module, arguments, attended == num_attended) for module, arguments, attended in noted]


def traced_products(base: PreTrainedModel, calls: Sequence[Call]) -> list[Product]:
    """Products in the order of `calls`; those not computed exactly once come last, each by itself."""
    modules = {module: name for name, module in base.named_modules() if is_product(module)}
    times = Counter(call.module for call in calls)
    products: list[Product] = []
    previous: Tensor | None = None
    for call in calls:
        module = call.module
        if module not in modules or times[module] > 1:
            continue
        x = call.arguments[0]
        is_last = call.is_last and x.shape[:2] == (1, TRIED_ROWS)
        joins = x is previous and not is_last and (module.bias is None) == (products[-1].module.bias is None)
        group = len(products) if not joins else products[-1].group
        products.append(Product(modules[module], module, group, is_last))
        previous = x
    alone = [module for module in modules if times[module] != 1]
    return products + [Product(modules[module], module, -1 - i, False) for i, module in enumerate(alone)]


def is_product(module: nn.Module) -> bool:
    return type(module) in (nn.Linear, Conv1D)
