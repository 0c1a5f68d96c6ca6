"""Matrix products with the model's weights: torch's, by oneDNN with weights packed once where that is possible."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear:
    """y = x weight^T + bias, for x of shape [rows, in_features].

    oneDNN multiplies by a weight in a blocked layout of its own. `F.linear` brings it there in every call, which costs a
    tenth of the product at hundreds of rows and a fifth at 64; here it is done once, and the weight as given is let go.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.bias = bias  # [out_features]
        self.is_packed = can_pack(weight.dtype)
        # [out_features, in_features]; an opaque oneDNN tensor where packed.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if self.is_packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        if self.is_packed:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return y
        return F.linear(x, self.weight, self.bias)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether torch has what its compiler uses to freeze a linear layer (private operators, so their absence is no
    error), and the CPU multiplies bfloat16. float32 products are MKL's, which needs no packing."""
    operators: Any = torch.ops.mkldnn
    return (
        dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and all(hasattr(operators, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
        and bool(operators._is_mkldnn_bf16_supported())
    )
