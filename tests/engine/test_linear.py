"""Matrix products with packed weights."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import batchllm.device.linear
from batchllm.device.linear import Linear, can_pack, packing_pays


def random_linear(dtype: torch.dtype, bias: bool) -> Linear:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 40, generator=generator).to(dtype)
    return Linear(weight, torch.randn(48, generator=generator).to(dtype) if bias else None)


@pytest.fixture
def packing_is(monkeypatch):
    """packing_is(faster=...) says what the measurement shall find."""

    def patch(*, faster: bool) -> None:
        monkeypatch.setattr(batchllm.device.linear, "packing_pays", lambda *shape: faster)

    return patch


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 64])
def test_packing_changes_products_within_rounding_only(packing_is, dtype, bias, num_rows):
    packing_is(faster=True)
    linear = random_linear(dtype, bias)
    x = torch.randn(num_rows, 40, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = F.linear(x.double(), linear.weight.double(), None if linear.bias is None else linear.bias.double())
    linear.pack()
    y = linear(x)
    assert (y.dtype, y.shape) == (dtype, (num_rows, 48))
    rounding = torch.finfo(dtype).eps * (1 + expected.abs().max()) if num_rows else 0
    assert num_rows == 0 or (y.double() - expected).abs().max() <= 4 * rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_onednn_multiplies_is_packed_where_that_is_faster(packing_is, dtype):
    linear = random_linear(dtype, bias=False)
    packing_is(faster=False)
    linear.pack()
    assert not linear.is_packed
    packing_is(faster=True)
    linear.pack()
    linear.pack()  # once is enough
    assert linear.is_packed == can_pack(dtype)


def test_nothing_but_float32_and_bfloat16_is_packed():
    assert not can_pack(torch.float64)
    assert not can_pack(torch.float16)


@pytest.mark.parametrize("slower", ["plain", "packed"])
def test_the_way_that_took_longer_loses(monkeypatch, slower):
    runs = itertools.count()

    def timed(run):
        run()
        return 2.0 if (next(runs) % 2 == 0) == (slower == "plain") else 1.0

    monkeypatch.setattr(batchllm.device.linear, "seconds", timed)
    assert packing_pays.__wrapped__(48, 40, torch.float32, 2) == (slower == "plain")


def test_a_shape_is_measured_once():
    packing_pays.cache_clear()
    for _ in range(3):
        random_linear(torch.float32, bias=False).pack()
    assert packing_pays.cache_info().misses == 1


def test_without_torchs_private_operators_nothing_is_packed(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    linear = random_linear(torch.bfloat16, bias=False)
    weight = linear.weight
    linear.pack()
    assert linear.weight is weight
