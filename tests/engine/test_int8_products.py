"""Products of 8 bits against those of integers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import batchllm.device.int8
from batchllm.device.int8 import Int8Linear, Int8Rows, quantize, quantize_weight

SHAPES = [(960, 576), (576, 1536), (48, 40), (7, 33), (512, 2048)]  # [out_features, in_features]
PAIRS = [(127.0, 1.0), (1.0, 127.0), (-64.0, -64.0), (127.0, -127.0)]  # of weights
NUM_ROWS = [1, 2, 5, 16, 63, 64, 255]


def random(*shape: int, seed: int = 0) -> Tensor:
    """Columns and rows of very different size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 3 * torch.rand(shape[-1], generator=generator)


def quantized(x: Tensor) -> Int8Rows:
    rows = Int8Rows.empty(*x.shape)
    quantize(x, out=rows)
    return rows


def assert_exact(linear: Int8Linear, weight: Tensor, rows: Int8Rows) -> None:
    """Within float32's rounding of the sums of integers, even before the zero point is subtracted."""
    integers, scales = quantize_weight(weight)
    exact = (rows.values.long() - 128) @ integers.long().T
    magnitude = rows.values.long() @ integers.long().T.abs()
    got = linear.products(rows).values.double()
    assert ((got - exact * scales.double()).abs() <= 2**-22 * magnitude * scales.double()).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_have_a_scale_per_output_and_pairs_that_add_up_to_128_at_most(shape):
    weight = random(*shape)
    weight[0] = weight[0].abs()  # pairs that add up
    weight[-1] = 0
    integers, scales = quantize_weight(weight)
    assert integers.abs().max() <= 127
    even = integers[:, : shape[1] // 2 * 2].int()
    assert even.unflatten(1, (-1, 2)).sum(dim=2).abs().max() <= 128
    assert ((integers * scales[:, None] - weight).abs() <= 0.501 * scales[:, None]).all()
    assert not integers[-1].any()


def test_a_transform_keeps_what_is_large_in_one_element_from_the_others_digits():
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, 576, generator=generator) for rows in (96, 40))
    x[:, 7] *= 50
    exact = x.double() @ weight.double().T
    plain, mixed = (Int8Linear(weight, num_segments=num_segments)(x) - exact for num_segments in (1, 64))
    assert mixed.square().mean() < plain.square().mean() / 4


@pytest.mark.parametrize("num_rows", [1, 7, 64, 300])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_integers(shape, num_rows):
    weight, x = random(*shape), random(num_rows, shape[1], seed=1)
    x[0] = x[0].abs()
    assert_exact(Int8Linear(weight), weight, quantized(x))


@pytest.mark.parametrize("num_rows", [1, 64])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_the_largest_sums_are_exact(pair, num_rows):
    weight = torch.tensor(pair).repeat(16, 288)
    rows = Int8Rows(torch.full((num_rows, 576), 255, dtype=torch.uint8), torch.ones(num_rows))
    assert_exact(Int8Linear(weight), weight, rows)


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_products_are_those_of_integers_without_vnni(isa):
    code = (
        "from batchllm.device.int8 import pairs_are_exact; from tests.engine.test_int8_products import *;"
        "assert pairs_are_exact();"
        "[test_products_are_those_of_integers(shape, rows) for shape in SHAPES for rows in (1, 64)];"
        "[test_the_largest_sums_are_exact(pair, rows) for pair in PAIRS for rows in (1, 64)]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"ONEDNN_MAX_CPU_ISA": isa})


def test_where_other_columns_are_paired_weights_have_half_the_range(monkeypatch):
    monkeypatch.setattr(batchllm.device.int8, "pairs_are_exact", lambda: False)
    weight, x = random(48, 40), random(9, 40, seed=1)
    assert quantize_weight(weight)[0].abs().max() == 63
    assert_exact(Int8Linear(weight), weight, quantized(x))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_rows_beside_it_nor_on_parts(monkeypatch, dtype, bias):
    linear = Int8Linear(random(960, 576), random(960, seed=2) if bias else None)
    x = random(1024, 576, seed=1).to(dtype)
    together = linear(x)
    assert (together.dtype, together.shape) == (dtype, (1024, 960))
    for num_rows in NUM_ROWS:
        assert torch.equal(linear(x[7 : 7 + num_rows]), together[7 : 7 + num_rows])
    monkeypatch.setattr(batchllm.device.int8, "MAX_PRODUCT_BYTES", 100 * 4 * 960)
    assert torch.equal(linear(x), together)


def test_a_layer_is_near_its_floats_and_takes_no_rows():
    weight, bias, x = random(960, 576), random(960, seed=2), random(64, 576, seed=1)
    exact = x @ weight.T + bias
    blocks = Int8Linear(weight.split(100), bias, shape=(960, 576))
    assert (blocks(x) - exact).norm() < 0.02 * exact.norm()
    assert torch.equal(blocks(x), Int8Linear(weight, bias)(x))
    assert blocks(x[:0]).shape == (0, 960)
