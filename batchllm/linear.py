"""Matrix products with the model's weights: torch's, by oneDNN with weights packed once where that is possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Linear:
    """y = x weight^T + bias, for x of shape [rows, in_features]."""

    weight: Tensor  # [out_features, in_features]; an opaque oneDNN tensor once packed
    bias: Tensor | None = None  # [out_features]

    @property
    def is_packed(self) -> bool:
        return bool(self.weight.is_mkldnn)

    def pack(self) -> None:
        """Brings the weight of a CPU into oneDNN's own layout, where `can_pack` allows it.

        `F.linear` does that in every call, which costs the more of the product the fewer rows it has.
        """
        if not self.is_packed and self.weight.is_cpu and can_pack(self.weight.dtype):
            self.weight = torch.ops.mkldnn._reorder_linear_weight.default(self.weight, None)

    def __call__(self, x: Tensor) -> Tensor:
        if self.is_packed:
            # The overload by name, so that no call has to find it.
            y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")
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
