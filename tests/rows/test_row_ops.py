"""The operations between matrix products against torch in float64, by whole steps, ends of rows and strided views."""

import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor

import batchllm_ext as ext

SIZES = [1, 15, 31, 32, 33, 64, 80, 576]  # a step is 8 to 32 elements
# bfloat16 rounds to half of 2^-8 relative; float32 may sum up in another order.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bfloat16"])
sizes = pytest.mark.parametrize("size", SIZES)


def normal(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def assert_rounded_once(actual: Tensor, expected: Tensor, magnitude: Tensor | float = 0.0) -> None:
    """`magnitude`: of the terms that cancel in `expected`."""
    tolerance = TOLERANCE[actual.dtype]
    bound = tolerance * expected.abs() + 2e-6 * torch.as_tensor(magnitude)
    assert ((actual.double() - expected).abs() <= bound + 1e-30).all()


def exact_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight.double()


@sizes
@dtypes
def test_rms_norm_divides_every_row_by_its_root_mean_square(dtype, size):
    x, weight = normal(7, size, dtype=dtype, scale=3.0), normal(size, dtype=dtype, seed=1)
    before, out = x.clone(), torch.full_like(x, torch.nan)
    ext.rms_norm(x, weight, eps=1e-2, out=out)
    assert_rounded_once(out, exact_norm(x, weight, 1e-2))
    assert torch.equal(x, before)


@sizes
@dtypes
def test_rms_norm_with_delta_adds_it_to_x_first(dtype, size):
    x, delta, weight = (normal(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(7, size), (7, size), (size,)]))
    total, out = x + delta, torch.empty_like(x)
    ext.rms_norm(x, weight, eps=1e-6, out=out, delta=delta)
    assert torch.equal(x, total)
    assert_rounded_once(out, exact_norm(total, weight, 1e-6))


@dtypes
def test_rms_norm_of_heads_stays_inside_them_and_may_be_in_place(dtype):
    qkv = normal(5, 6, 80, dtype=dtype)
    weight, before = normal(80, dtype=dtype, seed=1), qkv.clone()
    ext.rms_norm(qkv[:, 2:4], weight, eps=1e-6, out=qkv[:, 2:4])
    assert_rounded_once(qkv[:, 2:4], exact_norm(before[:, 2:4], weight, 1e-6))
    assert torch.equal(qkv[:, :2], before[:, :2])
    assert torch.equal(qkv[:, 4:], before[:, 4:])


@pytest.mark.parametrize("size", [2, 30, 62, 64, 66, 80, 128])
@dtypes
def test_rotate_turns_each_pair_by_its_angle_and_leaves_other_heads(dtype, size):
    qkv = normal(5, 4, size, dtype=dtype)
    before, angles = qkv.clone(), 10 * normal(5, size // 2, dtype=torch.float32, seed=1)
    ext.rotate(qkv[:, 1:3], angles.cos(), angles.sin())
    cos, sin = angles.cos().double()[:, None], angles.sin().double()[:, None]
    first, second = before[:, 1:3].double().chunk(2, dim=-1)
    expected = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    assert_rounded_once(qkv[:, 1:3], expected, magnitude=before.double().abs().max())
    assert torch.equal(qkv[:, :1], before[:, :1])
    assert torch.equal(qkv[:, 3:], before[:, 3:])


@sizes
@dtypes
def test_silu_and_mul_gates_up_by_gate(dtype, size):
    gate_up = normal(7, 2 * size, dtype=dtype, scale=8.0)
    out = torch.empty(7, size, dtype=dtype)
    ext.silu_and_mul(gate_up, out=out)
    gate, up = gate_up.double().chunk(2, dim=-1)
    assert_rounded_once(out, gate * torch.sigmoid(gate) * up)


@dtypes
def test_silu_of_far_gates_is_zero_or_the_gate(dtype):
    gate = torch.tensor([[-3e38, -1e4, -100.0, 0.0, 100.0, 1e4, 3e38, math.nan]], dtype=dtype)
    out = torch.empty(1, 8, dtype=dtype)
    ext.silu_and_mul(torch.cat((gate, torch.ones_like(gate)), dim=1), out=out)
    assert not out[0, :4].any()
    assert torch.equal(out[0, 4:7], gate[0, 4:7])
    assert out[0, 7].isnan()


@pytest.mark.parametrize("vocab_size", [1, 7, 31, 64, 2047, 2048, 5003])
@dtypes
def test_argmax_and_lse_are_those_of_the_row(dtype, vocab_size):
    logits = normal(9, vocab_size, dtype=dtype, scale=4.0) + 50
    token_ids, lse = torch.empty(9, dtype=torch.int32), torch.empty(9)
    ext.argmax_and_lse(logits, token_ids=token_ids, lse=lse)
    assert token_ids.tolist() == np.argmax(logits.float().numpy(), axis=1).tolist()
    torch.testing.assert_close(lse.double(), logits.double().logsumexp(dim=-1), rtol=2e-7, atol=2e-6)


@pytest.mark.parametrize("place", [0, 31, 2047, 2048, 4999, 5002])
@dtypes
def test_of_equal_largest_logits_the_first_is_taken_wherever_it_stands(dtype, place):
    logits = torch.full((1, 5003), -torch.inf, dtype=dtype)
    logits[0, place:] = -3.0
    token_ids, lse = torch.empty(1, dtype=torch.int32), torch.empty(1)
    ext.argmax_and_lse(logits, token_ids=token_ids, lse=lse)
    assert token_ids.item() == place
    assert lse.item() == pytest.approx(-3.0 + math.log(5003 - place), abs=2e-6)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_row_without_a_largest_logit_still_names_a_token(value):
    token_ids, lse = torch.full((1,), -1, dtype=torch.int32), torch.zeros(1)
    ext.argmax_and_lse(torch.full((1, 100), value), token_ids=token_ids, lse=lse)
    assert 0 <= token_ids.item() < 100
    assert lse.isnan().all()


@dtypes
def test_results_do_not_depend_on_the_number_of_threads(dtype):
    def results(num_threads: int) -> list[Tensor]:
        x, delta = normal(203, 576, dtype=dtype), normal(203, 576, dtype=dtype, seed=1)
        heads, angles = normal(203, 3, 192, dtype=dtype), normal(203, 96, dtype=torch.float32)
        normed, gated = torch.empty_like(x), torch.empty(203, 288, dtype=dtype)
        token_ids, lse = torch.empty(203, dtype=torch.int32), torch.empty(203)
        ext.rms_norm(x, delta[0], eps=1e-6, out=normed, delta=delta, num_threads=num_threads)
        ext.rotate(heads, angles.cos(), angles.sin(), num_threads=num_threads)
        ext.silu_and_mul(x, out=gated, num_threads=num_threads)
        ext.argmax_and_lse(x, token_ids=token_ids, lse=lse, num_threads=num_threads)
        return [x, normed, heads, gated, token_ids, lse]

    one = results(1)
    for num_threads in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(one, results(num_threads), strict=True))


def test_no_rows_are_nothing_to_do():
    none = torch.empty(0, 8)
    ext.rms_norm(none, torch.ones(8), eps=1e-6, out=none, delta=none)
    ext.rotate(none[:, None], none[:, :4], none[:, :4])
    ext.silu_and_mul(none, out=none[:, :4])
    ext.argmax_and_lse(none, token_ids=torch.empty(0, dtype=torch.int32), lse=none[:, 0])


def test_bfloat16_is_rounded_to_nearest_even_and_nan_stays_nan():
    x = torch.tensor([[1.0, 1.0, 1.0 + 2**-7, math.nan]], dtype=torch.bfloat16)
    delta = torch.tensor([[2**-8, 3 * 2**-9, 2**-8, 1.0]], dtype=torch.bfloat16)
    ext.rms_norm(x, torch.ones(4, dtype=torch.bfloat16), eps=0.0, out=torch.empty_like(x), delta=delta)
    assert x[0, :3].tolist() == [1.0, 1.0 + 2**-7, 1.0 + 2**-6]
    assert x[0, 3].isnan()


F32, BF16, I32 = torch.float32, torch.bfloat16, torch.int32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ext.rms_norm(x, x[0, :4], eps=0, out=x), "weight: size is 4, but x has 8"),
        (lambda x: ext.rms_norm(x, x[0], eps=0, out=x[:2]), "out: num_rows is 2, but x has 3"),
        (lambda x: ext.rms_norm(x, x[0], eps=0, out=x[:, None].expand(3, 2, 8)), "out: num_heads is 2, but x has 1"),
        (lambda x: ext.rms_norm(x, x[0], eps=0, out=x[:1].expand(3, 8)), "out: expected its own memory"),
        (lambda x: ext.rms_norm(x.T, x[:, 0], eps=0, out=x.T), "x: expected stride 1 in its last dimension, got 8"),
        (lambda x: ext.rotate(x, x, x), "x: expected 3 dimensions"),
        (lambda x: ext.rotate(x[:, None, :5], x, x), "x: expected an even size, got 5"),
        (lambda x: ext.rotate(x[:, None], x, x), "cos: size / 2 is 8, but x has 4"),
        (lambda x: ext.silu_and_mul(x, out=x), "gate_up: 2 size is 8, but out has 16"),
        (lambda x: ext.silu_and_mul(x, out=x[:, :4], num_threads=-1), "num_threads: expected at least 0, got -1"),
    ],
)
def test_errors_name_the_tensor_and_what_was_expected(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(torch.zeros(3, 8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ext.rms_norm(x, x[0], eps=0, out=x, delta=x.to(BF16)), "delta: expected float32, got bfloat16"),
        (lambda x: ext.rotate(x[:, None], x[:, :4].to(BF16), x[:, :4]), "cos: expected float32, got bfloat16"),
        (lambda x: ext.silu_and_mul(x.to(I32), out=x[:, :4]), "gate_up: expected float32 or bfloat16, got int32"),
        (lambda x: ext.argmax_and_lse(x, token_ids=x[:, 0], lse=x[:, 0]), "token_ids: expected int32, got float32"),
    ],
)
def test_other_elements_are_type_errors(call, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        call(torch.zeros(3, 8))
