"""Trees of published size: nodes per level _ tokens per level; the last level holds the requests' own tokens."""

import itertools

import numpy as np
import pytest

import batchllm_ext
from tests.cases import Case, Request
from tests.reference import from_bf16, to_bf16
from tests.simt.backend import attention, rounded, to_bits
from tests.simt.precision import check, of_spans
from tests.simt.test_attention import same_bits

TREES = [
    "1,10_4096,416",
    "1,1024_2048,32",
    "1,4,256_32,256,32",
    "1,8,512_32,2048,256",
    "1,4,8,256_32,256,256,32",
    "1,16,32,64,128,1024_256,128,64,32,32,32",
    "2,8,16,256_256,256,32,32",
    "256_1024",
]
HEADS = [(32, 32), (16, 8), (32, 8), (64, 8)]
HEAD_DIM = 128
MAX_ELEMENTS = 1 << 28  # of K at a time, which is kept several times over in float32: 1 GiB each


def levels(tree: str) -> list[list[int]]:
    """Nodes of every level, and tokens of each of them."""
    return [[int(number) for number in part.split(",")] for part in tree.split("_")]


def tree_case(tree: str, group_size: int, num_kv_heads: int) -> Case:
    nodes, tokens = levels(tree)
    requests = []
    for leaf in range(nodes[-1]):
        path = tuple((f"{level}.{leaf * nodes[level] // nodes[-1]}", tokens[level]) for level in range(len(nodes) - 1))
        requests.append(Request(path, tokens[-1]))
    return Case(
        tree,
        requests,
        num_qo_heads=group_size * num_kv_heads,
        num_kv_heads=num_kv_heads,
        head_dim=HEAD_DIM,
        page_size=16,
    )


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
    inputs = rounded(tree_case(tree, num_heads[0] // num_heads[1], 1).make_inputs(), "bfloat16")
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
        case = tree_case(tree, num_heads[0] // num_heads[1], num_kv_heads)
        inputs = rounded(case.make_inputs(seed), "bfloat16")
        result = attention(inputs, build="fast")
        check_tree(inputs, result)
        for build, order in (("fast", "descending"), ("checked", "ascending"), ("checked", "random")):
            assert same_bits(result, attention(inputs, build=build, order=order, preempt_one_in=200))
