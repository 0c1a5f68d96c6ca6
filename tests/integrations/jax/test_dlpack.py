"""JAX's arrays as our functions take them: read where they lie, never written to."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchllm_ext as ext
from tests.cases import Case, Inputs, decodes, prefix
from tests.reference import assert_close, attention_reference, from_bf16, to_bf16, tolerance

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture
def inputs() -> Inputs:
    return Case("jax", decodes(prefix(90), [3, 40, 17]), 4, 2, head_dim=32).make_inputs()


def plan_of(inputs: Inputs) -> ext.AttentionPlan:
    case = inputs.case
    arrays = {name: jnp.asarray(array) for name, array in inputs.arrays.items()}
    heads = {name: getattr(case, name) for name in ("num_qo_heads", "num_kv_heads", "head_dim", "page_size")}
    return ext.plan_attention(**arrays, **heads)


def test_attention_and_its_plan(inputs: Inputs) -> None:
    tensors = [jnp.asarray(x) for x in (inputs.q, inputs.k_pages, inputs.v_pages)]
    out, lse = ext.attention(plan_of(inputs), *tensors)
    assert isinstance(out, np.ndarray)  # since nobody may write to an array of JAX
    expected_out, expected_lse, max_score = attention_reference(inputs)
    assert_close("out", np.asarray(jnp.from_dlpack(out)), expected_out, tolerance(inputs, max_score))
    assert_close("lse", lse, expected_lse, 1e-5 * (1.0 + max_score / 8.0))


def test_bfloat16(inputs: Inputs) -> None:
    tensors = [jnp.asarray(x, jnp.bfloat16) for x in (inputs.q, inputs.k_pages, inputs.v_pages)]
    inputs.q = from_bf16(to_bf16(inputs.q))
    inputs.segment_k, inputs.segment_v = (
        [from_bf16(to_bf16(x)) for x in parts] for parts in (inputs.segment_k, inputs.segment_v)
    )
    out = np.full(inputs.q.shape, np.nan, np.float32)
    ext.attention(plan_of(inputs), *tensors, out=out, lse=None)
    expected, _, max_score = attention_reference(inputs)
    assert_close("out", out, expected, tolerance(inputs, max_score, "bfloat16"))
    with pytest.raises(ValueError, match=r"out: expected a tensor to write to, .* jaxlib.*; pass out="):
        ext.attention(plan_of(inputs), *tensors)


def test_merges() -> None:
    states = np.random.default_rng(0).standard_normal((2, 5, 3, 8), np.float32)
    lses = np.random.default_rng(1).standard_normal((2, 5, 3), np.float32)
    (out_a, out_b), (lse_a, lse_b) = jnp.asarray(states), jnp.asarray(lses)
    out, lse = ext.merge_state(out_a, lse_a, out_b, lse_b)
    weights = jax.nn.softmax(jnp.asarray(lses), axis=0)[..., None]
    np.testing.assert_allclose(out, (weights * states).sum(0), atol=1e-6)
    np.testing.assert_allclose(lse, jax.nn.logsumexp(jnp.asarray(lses), axis=0), atol=1e-6)


def test_an_array_that_would_be_written_is_refused_by_name() -> None:
    pages = jnp.zeros((3, 4, 2, 8))
    k, slots = jnp.ones((2, 2, 8)), np.array([0, 5])
    with pytest.raises(ValueError, match="k_pages: expected a writable tensor, got a read-only one"):
        ext.append_kv(k, k, slots, pages, np.zeros(pages.shape, np.float32))
    assert not np.asarray(pages).any()


def test_the_planner_takes_its_arrays() -> None:
    tokens, indptr = jnp.array([1, 2, 3, 4, 1, 2, 3, 5], jnp.int32), jnp.array([0, 4, 8], jnp.int32)
    trie = ext.PrefixTrie(tokens, indptr, drop_last=1)
    assert trie.num_tokens == 3
    segments = ext.choose_segments(trie)
    bounds = jnp.full(2, 2, jnp.int32)
    planner = ext.BatchPlanner(tokens, indptr, segments, max_output_tokens=bounds, num_pages=8)
    while (batch := planner.next_batch()) is not None:
        planner.commit(jnp.zeros(len(batch.logit_rows), jnp.int32))
    assert planner.stats["output_tokens"] == 4


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    """Whose last row, that of a question's last token, sees document and question."""
    names = runpy.run_path(str(EXAMPLES / "jax_attention.py"), run_name="__main__")
    assert "(280, 8, 64)" in capsys.readouterr().out
    x, batch = np.asarray(names["x"], np.float64), names["batch"]
    rows = [*range(200), *range(len(x) - 10, len(x))]  # the document, then the last question
    assert batch.positions[rows].tolist() == list(range(210))
    q, k, v = x[-1, :8], x[rows, 8:10], x[rows, 10:]
    scores = np.einsum("hgd,khd->hgk", q.reshape(2, 4, 64), k) / 8
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("hgk,khd->hgd", weights / weights.sum(-1, keepdims=True), v).reshape(8, 64)
    np.testing.assert_allclose(np.asarray(names["layer"](names["x"]))[-1], expected, atol=1e-5)
