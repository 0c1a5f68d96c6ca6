"""The draw against its definition in float64, which sorts, and knows no tiles."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import batchllm_ext as ext

LOG2_E = np.float32(1.44269504088896341)  # as a temperature it makes of integral logits powers of two
ROUNDING = 1e-5  # of sums, relative


@dataclass(frozen=True)
class Setting:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def sample(logits: np.ndarray, params: list[Setting], uniform: np.ndarray, dtype=torch.float32, **ruled):
    """token_ids, logprobs and lse of logits float32 [R, V] that dtype holds exactly."""
    rows = len(params)
    token_ids = torch.full((rows,), -1, dtype=torch.int32)
    logprobs, lse = torch.full((2, rows), 7.0)
    ext.sample(
        torch.from_numpy(logits).to(dtype),
        temperature=np.array([p.temperature for p in params], np.float32),
        top_k=np.array([p.top_k for p in params], np.int32),
        top_p=np.array([p.top_p for p in params], np.float32),
        min_p=np.array([p.min_p for p in params], np.float32),
        uniform=np.array(uniform, np.float64),
        token_ids=token_ids,
        logprobs=logprobs,
        lse=lse,
        **ruled,
    )
    return token_ids.numpy(), logprobs.numpy(), lse.numpy()


def weights_of(logits: np.ndarray, p: Setting) -> np.ndarray:
    logits = logits.astype(np.float64)
    return np.exp((logits - logits.max()) / np.float32(p.temperature))


def kept_by(logits: np.ndarray, p: Setting) -> int:
    """How many of the likeliest tokens the filters keep."""
    weights = np.sort(weights_of(logits, p))[::-1]
    num_kept = max(1, int((weights >= np.float32(p.min_p)).sum()))
    if p.top_k > 0:
        num_kept = min(num_kept, p.top_k)
    if p.top_p < 1:
        mass = weights[:num_kept].cumsum()
        num_kept = min(num_kept, 1 + int((mass < np.float64(np.float32(p.top_p)) * mass[-1]).sum()))
    return num_kept


def drawn(logits: np.ndarray, p: Setting, uniform: float, num_kept: int) -> tuple[int, int]:
    """The first and the last token that the definition allows within rounding."""
    likeliest = np.argsort(-logits.astype(np.float64), kind="stable")[:num_kept]
    kept = np.zeros(len(logits))
    kept[likeliest] = weights_of(logits, p)[likeliest]
    cumulative = kept.cumsum()
    places = np.flatnonzero(kept > 1e-37)  # float32 has less for zero
    targets = uniform * cumulative[-1] + np.array([-2, 2]) * ROUNDING * cumulative[-1]
    first, last = (
        min(np.searchsorted(cumulative[places], target, side="right"), len(places) - 1) for target in targets
    )
    return int(places[first]), int(places[last])


def assert_drawn(token: int, logits: np.ndarray, p: Setting, uniform: float) -> None:
    """By the definition, with the rounding of the mass that top_p asks for, of min_p and of what uniform meets."""
    if p.temperature == 0:
        assert token == logits.argmax()
        return
    nums_kept = {
        kept_by(logits, Setting(p.temperature, p.top_k, p.top_p * (1 + of_top_p), p.min_p * (1 + of_min_p)))
        for of_top_p in (-ROUNDING, 0, ROUNDING)
        for of_min_p in (-ROUNDING, 0, ROUNDING)
    }
    ranges = [drawn(logits, p, uniform, num_kept) for num_kept in nums_kept]
    assert any(first <= token <= last for first, last in ranges)
    rank = (logits > logits[token]).sum() + (logits[:token] == logits[token]).sum()
    assert rank < max(nums_kept)
    assert rank == 0 or weights_of(logits, p)[token] > 0


@st.composite
def rows_of_logits(draw) -> tuple[np.ndarray, torch.dtype]:
    """float32 [1, V], with ties, -infinity and numbers of any size, and the type that holds them."""
    vocab_size = draw(st.one_of(st.integers(1, 70), st.sampled_from([512, 513, 3000]), st.integers(71, 2000)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale, center = draw(st.sampled_from([(0.0, 1.0), (1e-30, 0.0), (1.0, 0.0), (4.0, -50.0), (4.0, 3e4), (1e37, 0.0)]))
    logits = scale * random.standard_normal(vocab_size) + center
    if draw(st.booleans()):
        logits = np.round(logits)
    logits[random.random(vocab_size) < draw(st.sampled_from([0.0, 0.1, 0.99]))] = -np.inf
    if np.isinf(logits).all():
        logits[random.integers(vocab_size)] = center
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    return torch.from_numpy(logits.astype(np.float32)).to(dtype).float().numpy(), dtype


SETTINGS = st.builds(
    Setting,
    temperature=st.sampled_from([0.0, 1e-5, 0.3, 1.0, float(LOG2_E), 5.0, 1e30]),
    top_k=st.one_of(st.just(0), st.integers(1, 100), st.sampled_from([-1, 600, 2**31 - 1])),
    top_p=st.one_of(st.just(1.0), st.floats(0.015625, 1.0, width=32), st.just(1e-9)),
    min_p=st.one_of(st.just(0.0), st.floats(0.0, 1.0, width=32)),
)


@settings(max_examples=150, deadline=None)
@given(rows_of_logits(), SETTINGS, st.integers(0, 2**32))
@example((np.array([3.0, 3.0, -1.0, 3.0], np.float32), torch.float32), Setting(top_k=2), 0)
@example((np.array([-0.0, 0.0, -0.0], np.float32), torch.bfloat16), Setting(top_p=0.5), 0)
def test_a_token_is_drawn_as_float64_would(row, p, seed):
    logits, dtype = row
    uniform = np.random.default_rng(seed).random(8)
    uniform[:2] = 0.0, np.nextafter(1.0, 0.0)
    token_ids, logprobs, lse = sample(np.tile(logits, (8, 1)), [p] * 8, uniform, dtype)
    for token, u in zip(token_ids, uniform, strict=True):
        assert_drawn(int(token), logits, p, u)
    exact = np.logaddexp.reduce(logits.astype(np.float64))
    np.testing.assert_allclose(lse, exact, rtol=2e-7, atol=2e-6)
    np.testing.assert_allclose(logprobs, logits[token_ids] - exact, rtol=2e-7, atol=2e-6 + 2e-7 * abs(exact))


@pytest.mark.parametrize("vocab_size", [49_152, 151_936, 300_000])
@pytest.mark.parametrize(
    "p",
    [Setting(), Setting(top_p=0.9), Setting(top_p=0.999), Setting(top_k=50), Setting(top_k=5000, min_p=1e-4)],
    ids=str,
)
def test_large_vocabularies_are_no_exception(vocab_size, p):
    random = np.random.default_rng(vocab_size)
    logits = (2.5 * random.standard_normal((3, vocab_size))).astype(np.float32)
    uniform = random.random(3)
    token_ids, _, lse = sample(logits, [p] * 3, uniform)
    for token, row, u in zip(token_ids, logits, uniform, strict=True):
        assert_drawn(int(token), row, p, u)
    np.testing.assert_allclose(lse, np.logaddexp.reduce(logits.astype(np.float64), axis=1), rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize("vocab_size", [1, 40, 700, 3000])
def test_where_weights_are_powers_of_two_nothing_is_rounded(vocab_size):
    """Every boundary of the unit interval between two tokens, from both sides; top_p at every boundary of the mass."""
    random = np.random.default_rng(vocab_size)
    logits = -random.integers(0, 8, vocab_size).astype(np.float32)
    logits[vocab_size // 2] = 0.0
    order = np.argsort(-logits, kind="stable")
    weights = np.exp2(logits.astype(np.float64))
    for num_kept in sorted({1, 2, 3, vocab_size // 3 + 1, vocab_size - 1, vocab_size} & set(range(1, vocab_size + 1))):
        kept = np.zeros(vocab_size)
        kept[order[:num_kept]] = weights[order[:num_kept]]
        cumulative = kept.cumsum()
        places = np.flatnonzero(kept)[:: max(1, num_kept // 40)]
        begin = (cumulative[places] - kept[places]) / cumulative[-1]
        begin = np.nextafter(begin, 1.0)  # whatever the division rounds to
        end = np.nextafter(np.nextafter(cumulative[places] / cumulative[-1], 0.0), 0.0)
        for uniform in (begin, end):
            setting = Setting(temperature=float(LOG2_E), top_k=num_kept)
            token_ids, _, _ = sample(np.tile(logits, (len(places), 1)), [setting] * len(places), uniform)
            assert token_ids.tolist() == places.tolist()


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (Setting(float(LOG2_E), top_p=0.5), {1, 3}),  # exactly half
        (Setting(float(LOG2_E), top_p=float(np.nextafter(np.float32(0.5), np.float32(1)))), {1, 3, 4}),
        (Setting(float(LOG2_E), min_p=0.5), {1, 3, 4, 6}),
        (Setting(float(LOG2_E), min_p=0.51), {1, 3}),
        (Setting(float(LOG2_E), top_k=3, min_p=0.25), {1, 3, 4}),
        (Setting(float(LOG2_E), top_k=3, top_p=0.79), {1, 3}),  # of 2.5, not of 4
        (Setting(float(LOG2_E), min_p=0.5, top_p=0.7), {1, 3, 4}),  # of 3, not of 4: 2.1 instead of 2.8
    ],
    ids=str,
)
def test_filters_apply_in_vllms_order(p, kept):
    """Weights 1, 1, 1/2, 1/2 and four times 1/4."""
    logits = np.array([-2, 0, -2, 0, -1, -2, -1, -2], np.float32)
    token_ids, _, _ = sample(np.tile(logits, (64, 1)), [p] * 64, np.arange(64) / 64)
    assert set(token_ids.tolist()) == kept


def test_ruled_rows_are_drawn_from_ruled_logits_and_scored_by_the_models():
    random = np.random.default_rng(0)
    logits = random.standard_normal((6, 50)).astype(np.float32)
    ruled = np.full((2, 50), -np.inf, np.float32)
    ruled[0, 17], ruled[1, 40] = 1.0, -5.0
    params = [Setting(temperature=i % 2) for i in range(6)]
    uniform = random.random(6)
    alone, _, lse = sample(logits, params, uniform)
    places = np.array([-1, 0, 1, 2, 0, -(2**31)], np.int32)
    token_ids, logprobs, same_lse = sample(logits, params, uniform, ruled_logits=ruled, ruled_rows=places)
    assert token_ids.tolist() == [alone[0], 17, 40, alone[3], 17, alone[5]]
    np.testing.assert_array_equal(same_lse, lse)
    np.testing.assert_array_equal(logprobs, logits[np.arange(6), token_ids] - lse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_are_not_finite_name_a_token_and_are_told_by_the_logprob(dtype):
    logits = np.random.default_rng(1).standard_normal((5, 600)).astype(np.float32)
    logits = torch.from_numpy(logits).to(dtype).float().numpy()
    uniform = np.full(5, 0.5)
    for p in (Setting(0), Setting(), Setting(2.0, 30, 0.9, 0.1)):
        before, _, _ = sample(logits, [p] * 5, uniform, dtype)
        broken = logits.copy()
        broken[0, 599], broken[1], broken[2, 3], broken[3] = np.nan, np.nan, np.inf, -np.inf
        token_ids, logprobs, lse = sample(broken, [p] * 5, uniform, dtype)
        assert ((token_ids >= 0) & (token_ids < 600)).all()
        assert token_ids[0] != 599
        assert token_ids[4] == before[4]
        for values in (logprobs, lse):
            assert np.isnan(values).tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 5003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_is_as_if_the_other_logits_were_minus_infinity(vocab_size, dtype):
    random = np.random.default_rng(0)
    settings_of = [Setting(0.0), Setting(), Setting(top_k=20), Setting(top_p=0.7), Setting(0.0), Setting(min_p=0.1)] * 2
    logits = torch.from_numpy(random.standard_normal((12, vocab_size), np.float32)).to(dtype).float().numpy()
    uniform = random.random(12)
    bits = random.integers(0, 2, (6, -(-vocab_size // 32) * 32)).astype(bool)
    bits[0], bits[1], bits[:, 0] = False, True, True  # words that allow nothing, and all
    allowed = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
    places = np.array([0, 1, 2, 3, 4, 5, -1, 6, 5, 4, 3, 2], np.int32)
    ruled_rows = np.array([-1, -1, -1, 0, 1, 2, 3, 4, -1, -1, -1, -1], np.int32)
    changed = random.standard_normal((5, vocab_size), np.float32)
    ruled = {"ruled_logits": changed, "ruled_rows": ruled_rows}
    got = sample(logits, settings_of, uniform, dtype, **ruled, allowed=allowed, allowed_rows=places, num_threads=2)

    drawn_from = np.where(ruled_rows[:, None] >= 0, changed[ruled_rows], logits)
    masks = np.where(((places >= 0) & (places < 6))[:, None], bits[places % 6, :vocab_size], True)
    drawn_from = np.where(masks, drawn_from, -np.inf).astype(np.float32)
    every = {"ruled_logits": drawn_from, "ruled_rows": np.arange(12, dtype=np.int32)}
    for actual, expected in zip(got, sample(logits, settings_of, uniform, dtype, **every), strict=True):
        assert np.array_equal(actual, expected)


def test_where_no_token_may_be_drawn_the_first_is_named_and_its_log_probability_told():
    logits = np.linspace(-3, 3, 40, dtype=np.float32)[None]
    nothing = {"allowed": np.zeros((1, 2), np.int32), "allowed_rows": np.zeros(1, np.int32)}
    for setting in (Setting(0.0), Setting()):
        token_ids, logprobs, lse = sample(logits, [setting], [0.5], **nothing)
        assert token_ids[0] == 0
        assert logprobs[0] == logits[0, 0] - lse[0]


OUT_OF_RANGE = [
    *(Setting(temperature) for temperature in (-1.0, np.nan, np.inf, 1e-45)),
    *(Setting(top_p=top_p) for top_p in (-1.0, np.nan)),
    *(Setting(min_p=min_p) for min_p in (2.0, np.nan)),
    Setting(top_k=-5),
]


@pytest.mark.parametrize("setting", OUT_OF_RANGE, ids=str)
@pytest.mark.parametrize("uniform", [-1.0, 0.5, 1.0, 2.0, np.nan])
def test_parameters_out_of_range_still_name_a_token(setting, uniform):
    logits = np.linspace(-3, 3, 700, dtype=np.float32)[None]
    token_ids, logprobs, _ = sample(logits, [setting], [uniform])
    assert 0 <= token_ids[0] < 700
    assert np.isfinite(logprobs).all()


def columns(rows: int) -> dict[str, np.ndarray]:
    floats = {name: np.ones(rows, np.float32) for name in ("temperature", "top_p", "min_p", "logprobs", "lse")}
    ints = {name: np.zeros(rows, np.int32) for name in ("top_k", "token_ids")}
    return {**floats, **ints, "uniform": np.zeros(rows)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"top_k": np.zeros(2, np.int32)}, "top_k: num_rows is 2, but logits has 3"),
        ({"min_p": np.zeros(6, np.float32)[::2]}, "min_p: expected stride 1 in its last dimension, got 2"),
        ({"logits": np.zeros((3, 0), np.float32)}, "logits: expected at least 1 token, got 0"),
        ({"ruled_rows": np.zeros(3, np.int32)}, "ruled_logits, ruled_rows: expected both or neither"),
        ({"allowed_rows": np.zeros(3, np.int32)}, "allowed, allowed_rows: expected both or neither"),
        (
            {"allowed_rows": np.zeros(3, np.int32), "allowed": np.zeros((1, 2), np.int32)},
            "allowed: vocab_size / 32, rounded up is 2, but logits has 1",
        ),
        (
            {"ruled_rows": np.zeros(3, np.int32), "ruled_logits": np.zeros((1, 7), np.float32)},
            "ruled_logits: vocab_size is 7, but logits has 8",
        ),
    ],
)
def test_errors_name_the_tensor_and_what_was_expected(changed, message):
    arguments = {"logits": np.zeros((3, 8), np.float32), **columns(3), **changed}
    with pytest.raises(ValueError, match=re.escape(message)):
        ext.sample(arguments.pop("logits"), **arguments)
