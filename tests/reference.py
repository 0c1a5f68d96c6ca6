"""Attention in float64 that knows no pages, plans, tiles or threads: every row against its dense K and V."""

from __future__ import annotations

import numpy as np

import batchllm_ext
from tests.cases import Inputs, visible_ranges


def attention_reference(inputs: Inputs) -> tuple[np.ndarray, np.ndarray, float]:
    """out [num_tokens, num_qo_heads, head_dim], lse [num_tokens, num_qo_heads], and the greatest |score|."""
    case = inputs.case
    group_size = case.num_qo_heads // case.num_kv_heads
    scale = case.head_dim**-0.5 if case.softmax_scale is None else case.softmax_scale
    out = np.zeros(inputs.q.shape)
    lse = np.full(inputs.q.shape[:2], -np.inf)
    max_score = 0.0
    token = 0
    for span in inputs.spans:
        for row in range(span.num_rows):
            k, v = _visible_kv(inputs, span, row)
            q = inputs.q[token].astype(np.float64).reshape(case.num_kv_heads, group_size, case.head_dim)
            scores = np.einsum("hgd,khd->hgk", q, k).reshape(case.num_qo_heads, -1) * scale
            if case.soft_cap:
                scores = case.soft_cap * np.tanh(scores / case.soft_cap)
            max_score = max(max_score, np.abs(scores).max(initial=0.0))
            out[token], lse[token] = _attend(scores, np.repeat(v, group_size, axis=1), inputs.sinks)
            token += 1
    return out, lse, max_score


def _visible_kv(inputs: Inputs, span, row: int) -> tuple[np.ndarray, np.ndarray]:
    """[num_keys, num_kv_heads, head_dim], in the order of positions."""
    keys, values = [], []
    for link, begin, end in visible_ranges(inputs.case, inputs.segments, span, row):
        first = inputs.segments[link].begin
        keys.append(inputs.segment_k[link][begin - first : end - first])
        values.append(inputs.segment_v[link][begin - first : end - first])
    if not keys:
        empty = np.zeros((0, inputs.case.num_kv_heads, inputs.case.head_dim))
        return empty, empty
    return np.concatenate(keys).astype(np.float64), np.concatenate(values).astype(np.float64)


def _attend(scores: np.ndarray, v: np.ndarray, sinks: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """scores [num_heads, num_keys], v [num_keys, num_heads, head_dim]; a sink is a key with v = 0."""
    if sinks is not None:
        scores = np.concatenate([scores, sinks[:, None].astype(np.float64)], axis=1)
        v = np.concatenate([v, np.zeros((1, *v.shape[1:]))])
    if scores.shape[1] == 0:
        return np.zeros(v.shape[1:]), np.full(scores.shape[0], -np.inf)
    max_score = scores.max(axis=1, keepdims=True)
    weights = np.exp(scores - max_score)
    total = weights.sum(axis=1, keepdims=True)
    return np.einsum("hk,khd->hd", weights / total, v), (max_score + np.log(total))[:, 0]


def tolerance(inputs: Inputs, max_score: float, dtype: str = "float32") -> float:
    """The law for float32: rounding a score of size s moves its weight by about s / 2^24. Where q, K and V are bfloat16
    and the CPU multiplies that, weights are rounded to bfloat16, too."""
    weight_error = 2**-9 if dtype == "bfloat16" and batchllm_ext.cpu_isa() == "avx512_bf16" else 0.0
    max_value = max((np.abs(v).max(initial=0.0) for v in inputs.segment_v), default=0.0)
    return float(max_value) * (1e-5 * (1.0 + max_score / 16.0) + weight_error)


def assert_close(name: str, got: np.ndarray, expected: np.ndarray, bound: float) -> None:
    """First where NaN and infinities are, then values; reports the first coordinate that differs."""
    assert got.shape == expected.shape, f"{name}: shape {got.shape}, expected {expected.shape}"
    for what, test in (("NaN", np.isnan), ("+inf", np.isposinf), ("-inf", np.isneginf)):
        _assert_none(name, test(got) != test(expected), got, expected, f"differs in {what}")
    finite = np.isfinite(expected)
    error = np.zeros(expected.shape)
    error[finite] = np.abs(got[finite].astype(np.float64) - expected[finite])
    _assert_none(name, error > bound, got, expected, f"differs by {error.max(initial=0.0):.3g}, bound {bound:.3g}")


def _assert_none(name: str, bad: np.ndarray, got: np.ndarray, expected: np.ndarray, message: str) -> None:
    if not bad.any():
        return
    where = tuple(int(i) for i in np.argwhere(bad)[0])
    raise AssertionError(
        f"{name} {message} at {where} (first of {int(bad.sum())}): got {got[where]}, expected {expected[where]}"
    )


def to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 to the uint16 bits of bfloat16, to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16))


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)
