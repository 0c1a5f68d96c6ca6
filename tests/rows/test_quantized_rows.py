"""Rows to 8 bits and their products back to numbers, compared with torch in float64."""

import re

import pytest
import torch
from torch import Tensor

import batchllm_ext as ext
from tests.rows.test_row_ops import assert_rounded_once, dtypes, normal, sizes

NUM_ROWS = 7


def quantized(call, num_rows: int, size: int, **options) -> tuple[Tensor, Tensor]:
    """What the call writes: bytes and scales."""
    out, scales = torch.zeros(num_rows, size, dtype=torch.uint8), torch.full((num_rows,), torch.nan)
    call(out=out, scales=scales, **options)
    return out, scales


def assert_stands_for(rows: tuple[Tensor, Tensor], expected: Tensor) -> None:
    """Every element within half a unit of float64's, but for float32's rounding; the row's largest at the end."""
    values, scales = rows[0].double() - 128, rows[1].double()[:, None]
    assert (values.abs().amax(dim=1) == 127).all()
    torch.testing.assert_close(scales, expected.abs().amax(dim=1, keepdim=True) / 127, rtol=1e-5, atol=0)
    assert ((values * scales - expected).abs() <= 0.502 * scales).all()


def hadamard(num_segments: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < num_segments:
        matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
    return matrix / num_segments**0.5


@sizes
@dtypes
def test_rows_are_rounded_to_a_127th_of_their_largest_magnitude(dtype, size):
    x = normal(NUM_ROWS, size, dtype=dtype) * torch.logspace(-3, 3, NUM_ROWS)[:, None].to(dtype)
    assert_stands_for(quantized(lambda **to: ext.quantize_rows(x, **to), NUM_ROWS, size), x.double())


@pytest.mark.parametrize(("size", "num_segments"), [(576, 64), (48, 16), (24, 8), (40, 2), (6, 2), (64, 64)])
@dtypes
def test_rows_are_mixed_before_they_are_rounded(dtype, size, num_segments):
    x = normal(NUM_ROWS, size, dtype=dtype)
    x[2, 5] = 300
    mixed = (hadamard(num_segments) @ x.double().unflatten(1, (num_segments, -1))).flatten(1)
    to_bytes = quantized(lambda **to: ext.quantize_rows(x, num_segments=num_segments, **to), NUM_ROWS, size)
    assert_stands_for(to_bytes, mixed)


def test_halves_go_to_the_even_number():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -127.0, 126.5]])
    out, scales = quantized(lambda **to: ext.quantize_rows(x, **to), 1, 8)
    assert (out.int() - 128).tolist() == [[127, 0, 2, 2, 0, -2, -127, 126]]
    assert scales.tolist() == [1.0]


@dtypes
def test_a_row_of_zeros_stays_one_and_nan_is_told_by_the_scale(dtype):
    x = torch.zeros(3, 40, dtype=dtype)
    x[1, 37], x[2, 3] = torch.nan, torch.inf
    out, scales = quantized(lambda **to: ext.quantize_rows(x, **to), 3, 40)
    assert (out[0] == 128).all()
    assert scales[0] < 1e-30
    assert scales[1].isnan()
    assert scales[2].isinf()


@sizes
@dtypes
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_take_their_rows_scale_then_the_bias(dtype, size, has_bias):
    x, scales = normal(NUM_ROWS, size, dtype=torch.float32), normal(NUM_ROWS, dtype=torch.float32, seed=1)
    bias = normal(size, dtype=torch.float32, seed=2) if has_bias else None
    out = torch.empty(NUM_ROWS, size, dtype=dtype)
    ext.dequantize_rows(x, scales, out=out, bias=bias)
    scaled = x.double() * scales.double()[:, None]
    assert_rounded_once(out, scaled + (bias if has_bias else 0), magnitude=scaled.abs())
    if dtype == torch.float32:
        ext.dequantize_rows(x, scales, out=x, bias=bias)
        assert torch.equal(x, out)


@sizes
@pytest.mark.parametrize("has_bias", [False, True])
def test_norm_quantize_adds_the_products_and_norms_the_sum(size, has_bias):
    x, delta = (normal(NUM_ROWS, size, dtype=torch.float32, seed=seed, scale=3.0) for seed in (0, 1))
    delta_scales = normal(NUM_ROWS, dtype=torch.float32, seed=2)
    bias = normal(size, dtype=torch.float32, seed=3) if has_bias else None
    total = x.double() + delta.double() * delta_scales.double()[:, None] + (bias if has_bias else 0)
    deltas = {"delta": delta, "delta_scales": delta_scales, "delta_bias": bias}
    rows = quantized(lambda **to: ext.norm_quantize(x, eps=1e-2, **to), NUM_ROWS, size, **deltas)
    assert_rounded_once(x, total, magnitude=total.abs() + 10)
    assert_stands_for(rows, total / (total.square().mean(dim=1, keepdim=True) + 1e-2).sqrt())
    before = x.clone()
    again = quantized(lambda **to: ext.norm_quantize(x, eps=1e-2, **to), NUM_ROWS, size)
    assert torch.equal(x, before)
    assert all(torch.equal(a, b) for a, b in zip(rows, again, strict=True))


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("size", "num_segments"), [(1, 1), (33, 1), (48, 16), (64, 64), (80, 16), (76, 4), (1536, 64)])
def test_silu_mul_quantize_gates_and_mixes_segments(size, num_segments, has_bias):
    gate_up, scales = normal(NUM_ROWS, 2 * size, dtype=torch.float32, scale=4.0), torch.linspace(0.1, 2, NUM_ROWS)
    bias = normal(2 * size, dtype=torch.float32, seed=3) if has_bias else None
    before = gate_up.clone()
    rows = quantized(
        lambda **to: ext.silu_mul_quantize(gate_up, scales, **to), NUM_ROWS, size, bias=bias, num_segments=num_segments
    )
    assert torch.equal(gate_up, before)
    gate, up = (before.double() * scales.double()[:, None] + (bias if has_bias else 0)).chunk(2, dim=1)
    segments = (gate * torch.sigmoid(gate) * up).view(NUM_ROWS, num_segments, -1)
    assert_stands_for(rows, (hadamard(num_segments) @ segments).flatten(1))


def test_a_row_does_not_depend_on_others_nor_on_threads():
    x, gate_up = normal(203, 576, dtype=torch.float32), normal(203, 1152, dtype=torch.float32)
    scales, delta = torch.linspace(0.1, 2, 203), normal(203, 576, dtype=torch.float32, seed=1)

    def results(rows: slice, num_threads: int) -> list[Tensor]:
        residual, num = x[rows].clone(), len(x[rows])
        threads = {"num_threads": num_threads}
        deltas = {"delta": delta[rows], "delta_scales": scales[rows]}
        plain = quantized(lambda **to: ext.quantize_rows(x[rows], **to), num, 576, **threads)
        normed = quantized(lambda **to: ext.norm_quantize(residual, eps=0, **to), num, 576, **deltas, **threads)
        gated = quantized(
            lambda **to: ext.silu_mul_quantize(gate_up[rows], scales[rows], **to), num, 576, num_segments=64, **threads
        )
        back = torch.empty(num, 576)
        ext.dequantize_rows(x[rows], scales[rows], out=back, **threads)
        return [*plain, residual, *normed, *gated, back]

    whole = results(slice(203), 1)
    for num_threads in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(whole, results(slice(203), num_threads), strict=True))
    for rows in (slice(0, 1), slice(60, 67), slice(100, 203)):
        assert all(torch.equal(a[rows], b) for a, b in zip(whole, results(rows, 1), strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, q, s: ext.quantize_rows(x, out=q[:, :4], scales=s), "out: size is 4, but x has 8"),
        (lambda x, q, s: ext.quantize_rows(x, out=q, scales=s[:2]), "scales: num_rows is 2, but x has 3"),
        (lambda x, q, s: ext.dequantize_rows(x, s, out=x[:2]), "out: num_rows is 2, but x has 3"),
        (lambda x, q, s: ext.dequantize_rows(x, s, out=x, bias=s), "bias: size is 3, but x has 8"),
        (
            lambda x, q, s: ext.norm_quantize(x, eps=0, out=q, scales=s, delta=x),
            "delta, delta_scales: expected both or neither",
        ),
        (
            lambda x, q, s: ext.norm_quantize(x, eps=0, out=q, scales=s, delta_bias=x[0]),
            "delta_bias: expected none, because there is no delta",
        ),
        (lambda x, q, s: ext.silu_mul_quantize(x, s, out=q, scales=s), "gate_up: 2 size is 8, but out has 16"),
        (
            lambda x, q, s: ext.silu_mul_quantize(x, s, out=q[:, :4], scales=s, num_segments=8),
            "num_segments: expected a power of two that divides size, 4, got 8",
        ),
        (
            lambda x, q, s: ext.silu_mul_quantize(x, s, out=q[:, :4], scales=s, num_segments=0),
            "num_segments: expected a power of two that divides size, 4, got 0",
        ),
    ],
)
def test_errors_name_the_tensor_and_what_was_expected(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(torch.zeros(3, 8), torch.zeros(3, 8, dtype=torch.uint8), torch.zeros(3))
