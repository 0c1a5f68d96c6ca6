"""Matrix products with packed weights."""

import pytest
import torch
import torch.nn.functional as F

from batchllm.linear import Linear, can_pack


def random_linear(dtype: torch.dtype, bias: bool) -> Linear:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 40, generator=generator).to(dtype)
    return Linear(weight, torch.randn(48, generator=generator).to(dtype) if bias else None)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 64])
def test_packing_changes_products_within_rounding_only(dtype, bias, num_rows):
    linear = random_linear(dtype, bias)
    x = torch.randn(num_rows, 40, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = F.linear(x.double(), linear.weight.double(), None if linear.bias is None else linear.bias.double())
    linear.pack()
    y = linear(x)
    assert (y.dtype, y.shape) == (dtype, (num_rows, 48))
    rounding = torch.finfo(dtype).eps * (1 + expected.abs().max()) if num_rows else 0
    assert num_rows == 0 or (y.double() - expected).abs().max() <= 4 * rounding


def test_only_what_onednn_multiplies_is_packed():
    for dtype in (torch.float32, torch.bfloat16):
        linear = random_linear(dtype, bias=False)
        linear.pack()
        linear.pack()  # once is enough
        assert linear.is_packed == can_pack(dtype)
    assert not can_pack(torch.float32)


def test_without_torchs_private_operators_nothing_is_packed(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    linear = random_linear(torch.bfloat16, bias=False)
    weight = linear.weight
    linear.pack()
    assert linear.weight is weight
