"""Merging is commutative and associative, and the empty state is its identity."""

import numpy as np
import pytest

import batchllm_ext
from tests.reference import assert_close, from_bf16, to_bf16

SHAPE = (5, 3, 16)  # [num_tokens, num_heads, head_dim]


def state(seed: int, spread: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(SHAPE).astype(np.float32), (spread * rng.standard_normal(SHAPE[:2])).astype(np.float32)


def empty(lse: float = -np.inf, garbage: float = float("nan")) -> tuple[np.ndarray, np.ndarray]:
    return np.full(SHAPE, garbage, np.float32), np.full(SHAPE[:2], lse, np.float32)


def merge(a, b, **options):
    return batchllm_ext.merge_state(*a, *b, **options)


def assert_same_state(got, expected, bound: float = 2e-6) -> None:
    assert_close("out", got[0], expected[0], bound)
    assert_close("lse", got[1], expected[1], bound)


def test_merge_is_the_softmax_over_both_sets():
    (out_a, lse_a), (out_b, lse_b) = a, b = state(0), state(1)
    sum_a, sum_b = np.exp(lse_a.astype(np.float64)), np.exp(lse_b.astype(np.float64))
    expected_out = (out_a * sum_a[..., None] + out_b * sum_b[..., None]) / (sum_a + sum_b)[..., None]
    assert_same_state(merge(a, b), (expected_out, np.log(sum_a + sum_b)))


def test_merge_is_commutative_to_the_bit():
    a, b = state(0), state(1)
    assert all((x == y).all() for x, y in zip(merge(a, b), merge(b, a), strict=True))


@pytest.mark.parametrize("spread", [1.0, 30.0, 1e4])
def test_merge_is_associative(spread: float):
    a, b, c = (state(seed, spread) for seed in range(3))
    assert_same_state(merge(merge(a, b), c), merge(a, merge(b, c)), 2e-6 * (1.0 + spread))


@pytest.mark.parametrize("lse", [-np.inf, np.inf], ids=["minus_inf", "plus_inf"])
@pytest.mark.parametrize("garbage", [0.0, float("nan"), np.inf, 1e38])
def test_an_empty_state_is_the_identity_whatever_stands_in_its_out(lse: float, garbage: float):
    a = state(0)
    for merged in (merge(a, empty(lse, garbage)), merge(empty(lse, garbage), a)):
        assert (merged[0] == a[0]).all()
        assert (merged[1] == a[1]).all()


@pytest.mark.parametrize("lse", [-np.inf, np.inf])
def test_two_empty_states_are_empty(lse: float):
    out, merged_lse = merge(empty(lse), empty(-np.inf))
    assert (out == 0.0).all()
    assert (merged_lse == -np.inf).all()


def test_merge_is_decided_row_by_row():
    a, b = state(0), state(1)
    a[1][2, 1], a[0][2, 1] = -np.inf, np.nan
    b[1][3, 0], b[0][3, 0] = np.inf, np.nan
    out, lse = merge(a, b)
    assert np.isfinite(out).all()
    assert (out[2, 1] == b[0][2, 1]).all()
    assert lse[3, 0] == a[1][3, 0]


@pytest.mark.parametrize("other", [-np.inf, 0.0])
def test_a_nan_lse_is_not_taken_for_empty(other: float):
    for a, b in ((empty(np.nan, 0.0), empty(other, 0.0)), (empty(other, 0.0), empty(np.nan, 0.0))):
        assert np.isnan(merge(a, b)[1]).all()


def test_base_2_is_base_e_in_other_units():
    (out_a, lse_a), (out_b, lse_b) = a, b = state(0), state(1)
    ln2 = np.float32(np.log(2.0))
    out, lse = merge((out_a, lse_a / ln2), (out_b, lse_b / ln2), lse_base="2")
    assert_same_state((out, lse * ln2), merge(a, b))


def test_merge_states_merges_along_dimension_1():
    states = [state(0), empty(), state(1), state(2), empty(np.inf)]
    out = np.stack([s[0] for s in states], axis=1)
    lse = np.stack([s[1] for s in states], axis=1)
    expected = merge(merge(state(0), state(1)), state(2))
    assert_same_state(batchllm_ext.merge_states(out, lse), expected)
    strided = (
        np.stack([s[0] for s in states]).transpose(1, 0, 2, 3),
        np.stack([s[1] for s in states]).transpose(1, 0, 2),
    )
    assert_same_state(batchllm_ext.merge_states(*strided), expected)


def test_no_states_are_empty_and_one_state_is_itself():
    out, lse = state(0)
    merged = batchllm_ext.merge_states(out[:, None], lse[:, None])
    assert (merged[0] == out).all()
    assert (merged[1] == lse).all()
    none_out, none_lse = batchllm_ext.merge_states(out[:, None][:, :0], lse[:, None][:, :0])
    assert (none_out == 0.0).all()
    assert (none_lse == -np.inf).all()


def test_merge_of_bfloat16_rounds_once():
    torch = pytest.importorskip("torch")
    a, b = ((torch.from_numpy(out).bfloat16(), torch.from_numpy(lse)) for out, lse in (state(0), state(1)))
    out, lse = merge(a, b)
    assert out.dtype == torch.bfloat16
    exact = merge((a[0].float(), a[1]), (b[0].float(), b[1]))
    assert torch.equal(out, exact[0].bfloat16())
    assert torch.equal(lse, exact[1])


def test_rounding_to_bfloat16_is_to_nearest_even():
    values = np.array([1.0, 1.00390625, 1.01171875, -1.00390625, 1e-40, 3.4e38, np.nan], np.float32)
    assert to_bf16(values).tolist()[:4] == [0x3F80, 0x3F80, 0x3F82, 0xBF80]
    torch = pytest.importorskip("torch")
    bits = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    assert (to_bf16(values)[:-1] == bits[:-1]).all()
    assert np.isnan(from_bf16(to_bf16(values))[-1])


def test_shapes_that_disagree_are_named():
    (out_a, lse_a), (out_b, lse_b) = state(0), state(1)
    with pytest.raises(ValueError, match="out_b: num_heads is 2, but out_a has 3"):
        batchllm_ext.merge_state(out_a, lse_a, out_b[:, :2], lse_b)
    with pytest.raises(TypeError, match="lse_b: expected float32 or bfloat16, got float64"):
        batchllm_ext.merge_state(out_a, lse_a, out_b, lse_b.astype(np.float64))
    with pytest.raises(ValueError, match=r"out: expected 4 dimensions \[num_tokens, num_states, num_heads, head_dim\]"):
        batchllm_ext.merge_states(out_a, lse_a)
    with pytest.raises(ValueError, match='lse_base: expected "e" or "2", got "10"'):
        batchllm_ext.merge_state(out_a, lse_a, out_b, lse_b, lse_base="10")
