"""What tensor cores may do to scores, compared with the law of the log-sum-exp.

They are reported to add a sum and the products of one step at the exponent of the largest and to cut off what is
below: Ampere 8 products with one bit more than float32 has, Hopper 16 with two. Cutting has a sign, so the error of a
large score grows with every step; the emulator rounds to nearest and does not show it.
"""

import numpy as np
import pytest

from tests.reference import from_bf16, to_bf16
from tests.simt.precision import lse_bound

STEPS = {"ampere": (8, 1), "hopper": (16, 2)}  # products, further bits
FLOAT32_BITS = 24


def cut(values: np.ndarray, like: np.ndarray, num_bits: int) -> np.ndarray:
    """Towards zero, to `num_bits` behind the first of `like`."""
    unit = np.ldexp(1.0, np.frexp(np.abs(like))[1] - num_bits)
    return np.trunc(values / unit) * unit


def dot(q: np.ndarray, k: np.ndarray, num_products: int, further_bits: int) -> np.ndarray:
    """[num] of [num, head_dim]."""
    total = np.zeros(len(q))
    for begin in range(0, q.shape[1], num_products):
        step = slice(begin, begin + num_products)
        terms = np.concatenate([total[:, None], q[:, step] * k[:, step]], axis=1)
        total = cut(terms, np.abs(terms).max(axis=1, keepdims=True), FLOAT32_BITS + further_bits).sum(axis=1)
        total = cut(total, total, FLOAT32_BITS)
    return total


def keys(kind: str, q: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if kind == "along":  # every product is positive, so every cut pulls the same way
        return q * rng.uniform(1.0, 8.0, (len(q), 1))
    return rng.normal(size=q.shape)


@pytest.mark.parametrize("kind", ["along", "random"])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("architecture", STEPS)
def test_a_score_of_cut_off_sums_is_within_the_law_of_a_gpu(architecture: str, head_dim: int, kind: str):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(4000, head_dim))
    q, k = (from_bf16(to_bf16(x.astype(np.float32))).astype(np.float64) for x in (q, keys(kind, q, rng)))
    exact = (q * k).sum(axis=1) * head_dim**-0.5
    error = dot(q, k, *STEPS[architecture]) * head_dim**-0.5 - exact
    # A row that sees one key has its score for a log-sum-exp.
    assert (np.abs(error) <= lse_bound(np.abs(exact), head_dim, cuts_off=True)).all()
    if kind == "along":
        assert error.mean() < 0  # what this is about
