"""The kernels on trees of published size."""

import itertools

import numpy as np
import pytest

import batchllm_ext
from tests.reference import from_bf16, to_bf16
from tests.simt.backend import attention, rounded, to_bits
from tests.simt.precision import check, of_spans
from tests.simt.test_attention import same_bits
from tests.trees import HEADS, TREES, levels, tree_case

HEAD_DIM = 128
MAX_ELEMENTS = 1 << 28  # of K at a time, which is kept several times over in float32: 1 GiB each


def check_tree(inputs, result) -> None:
    """Some rows against float64, all against the CPU kernel."""
    chosen = sorted(np.random.default_rng(0).choice(len(inputs.spans), min(24, len(inputs.spans)), replace=False))
    rows = of_spans(inputs, chosen)
    check(rows, type(result)(result.out[chosen], result.lse[chosen], result.counts), "bfloat16")
    plan = batchllm_ext.plan_attention(**inputs.plan_arguments)
    pages = [to_bits(pages, "bfloat16") for pages in (inputs.k_pages, inputs.v_pages)]
    out, lse = batchllm_ext.attention(plan, to_bf16(inputs.q), *pages, dtype="bfloat16")
    np.testing.assert_allclose(result.out, from_bf16(out), rtol=2**-7, atol=4e-3)
    np.testing.assert_allclose(result.lse, lse, atol=1e-4)


def in_turn(index: int) -> list[pytest.MarkDecorator]:
    """Of every tree one number of heads, another for the next tree; `make test-full` takes all with all."""
    return [] if index % len(HEADS) == index // len(HEADS) % len(HEADS) else [pytest.mark.full]


@pytest.mark.parametrize(
    ("tree", "num_heads"),
    [
        pytest.param(tree, num_heads, marks=in_turn(index), id=f"{tree}-{num_heads[0]}_{num_heads[1]}")
        for index, (tree, num_heads) in enumerate(itertools.product(TREES, HEADS))
    ],
)
def test_one_head_of_a_tree_matches_the_reference(tree: str, num_heads: tuple[int, int]):
    inputs = rounded(tree_case(tree, (num_heads[0] // num_heads[1], 1), HEAD_DIM).make_inputs(), "bfloat16")
    check_tree(inputs, attention(inputs, build="fast"))


def heads_at_a_time(tree: str, num_kv_heads: int) -> list[int]:
    """KV heads of each call: all at once, or as many as memory takes."""
    at_once = MAX_ELEMENTS // (HEAD_DIM * int(np.dot(*levels(tree))))
    return [min(at_once, num_kv_heads - begin) for begin in range(0, num_kv_heads, at_once)]


@pytest.mark.full
@pytest.mark.parametrize("num_heads", HEADS, ids=lambda heads: f"{heads[0]}_{heads[1]}")
@pytest.mark.parametrize("tree", TREES)
def test_all_heads_of_a_tree_match_the_reference_in_every_order(tree: str, num_heads: tuple[int, int]):
    for seed, num_kv_heads in enumerate(heads_at_a_time(tree, num_heads[1])):
        case = tree_case(tree, (num_heads[0] // num_heads[1] * num_kv_heads, num_kv_heads), HEAD_DIM)
        inputs = rounded(case.make_inputs(seed), "bfloat16")
        result = attention(inputs, build="fast")
        check_tree(inputs, result)
        for build, order in (("fast", "descending"), ("checked", "ascending"), ("checked", "random")):
            assert same_bits(result, attention(inputs, build=build, order=order, preempt_one_in=200))
