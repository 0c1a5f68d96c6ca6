"""Weights in oneDNN's own layout, and products with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def packed(weight: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._reorder_linear_weight.default(weight, None)
    return result


def packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # The overload by name, so that calls need not resolve it.
    y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return y


def can_pack(dtype: torch.dtype) -> bool:
    """Whether torch has the operators with which its compiler freezes a linear layer (they are private, so their
    absence is no error), and the CPU multiplies this type."""
    operators: Any = torch.ops.mkldnn
    return (
        dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and all(hasattr(operators, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
        and (dtype == torch.float32 or bool(operators._is_mkldnn_bf16_supported()))
    )
