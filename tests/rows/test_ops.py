"""The operations that the driver needs from a GPU between matrix products, compared with the CPU."""

from typing import Any

import numpy as np
import pytest
import torch

import batchllm_ext as ext
from batchllm.device.ops import CpuOps, Draw, DrawParams, Ops
from tests.cases import ATTENTION_CASES, Case
from tests.engine.fake_gpu import FakeDevicePlan, FakeGpuOps
from tests.reference import assert_close, attention_reference, tolerance
from tests.rows.test_row_ops import dtypes, normal


@dtypes
def test_both_devices_are_asked_for_the_same(dtype):
    weight, delta = normal(64, dtype=dtype), normal(5, 64, dtype=dtype)
    results = []
    for ops in (CpuOps(num_threads=1), FakeGpuOps()):
        x, qkv, gated = normal(5, 64, dtype=dtype), normal(5, 4, 64, dtype=dtype), torch.empty(5, 32, dtype=dtype)
        ops.rms_norm(qkv[:, :2], weight, eps=1e-6, out=qkv[:, :2])
        normed = torch.empty_like(x)
        ops.rms_norm(x, weight, eps=1e-1, out=normed, delta=delta)
        ops.silu_and_mul(normed, out=gated)
        results.append((x, qkv, normed, gated))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("is_rotated", [True, False])
@pytest.mark.parametrize("has_norms", [False, True])
@dtypes
def test_q_k_and_v_are_prepared_by_the_kernels_one_by_one(dtype, has_norms: bool, is_rotated: bool):
    """5 rows of 4 + 2 + 2 heads; on a GPU one of them may have no slot."""
    before = normal(5, 8, 64, dtype=dtype)
    angles = normal(5, 32, dtype=torch.float32)
    norms = (normal(64, dtype=dtype, seed=1), normal(64, dtype=dtype, seed=2)) if has_norms else None
    slots = torch.tensor([7, 0, 3, 4, 11])
    turned = before[:, :6].clone()
    if norms is not None:
        for heads, weight in ((turned[:, :4], norms[0]), (turned[:, 4:], norms[1])):
            ext.rms_norm(heads, weight, eps=1e-3, out=heads)
    turned_by = (angles.cos(), angles.sin()) if is_rotated else None
    if turned_by is not None:
        ext.rotate(turned, *turned_by)
    for ops, rows in ((CpuOps(num_threads=1), [0, 1, 2, 3, 4]), (FakeGpuOps(), [0, 1, 3, 4])):
        k_pages, v_pages, k_alone, v_alone = (torch.zeros(3, 4, 2, 64, dtype=dtype) for _ in range(4))
        asked = torch.full((5,), -1).index_copy(0, torch.tensor(rows), slots[rows])
        qkv = before.clone()
        ops.append_kv(turned[:, 4:], before[:, 6:], asked, k_alone, v_alone)
        ops.norm_rotate_append(qkv, norms, turned_by, asked, k_pages, v_pages, eps=1e-3)
        assert torch.equal(qkv[rows, :4], turned[rows, :4])
        keys, values = turned[:, 4:], before[:, 6:]
        for pages, heads in ((k_pages, keys), (v_pages, values), (k_alone, keys), (v_alone, values)):
            expected = torch.zeros(12, 2, 64, dtype=dtype).index_copy(0, slots[rows], heads[rows])
            assert torch.equal(pages.flatten(0, 1), expected)


@dtypes
def test_both_devices_draw_the_same(dtype):
    logits, ruled = normal(9, 5003, dtype=dtype, scale=4.0), normal(2, 5003, dtype=torch.float32, scale=4.0, seed=1)
    params = DrawParams(
        temperature=torch.arange(9.0),
        top_k=torch.arange(9, dtype=torch.int32),
        top_p=torch.linspace(1.0, 0.2, 9),
        min_p=torch.linspace(0.0, 0.5, 9),
        uniform=torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    for places in (None, torch.tensor([-1, 0, -1, 1, -1, -1, 0, 2, -1], dtype=torch.int32)):
        results = [
            drawn(ops, logits, params, None if places is None else (ruled, places))
            for ops in (CpuOps(num_threads=1), FakeGpuOps())
        ]
        assert [result.dtype for result in results[0]] == [torch.int32, torch.float32]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_no_rows_are_no_tokens():
    none = torch.empty(0)
    params = DrawParams(none, none.int(), none, none, none.double())
    for ops in (CpuOps(num_threads=1), FakeGpuOps()):
        assert [len(result) for result in drawn(ops, torch.empty(0, 8), params)] == [0, 0]


def drawn(ops: Ops, logits: torch.Tensor, params: DrawParams, *more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    out = Draw.of(len(logits), logits.device)
    ops.sample(logits, params, *more, out=out)
    return out.token_ids, out.logprobs


KINDS = [
    case
    for case in ATTENTION_CASES
    if (case.window_left, case.softmax_scale, case.soft_cap, case.has_sinks) != (-1, None, 0.0, False)
]


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_attention_is_asked_for_a_kind_of_layer(case: Case):
    inputs = case.make_inputs()
    plan = ext.plan_attention(**inputs.plan_arguments)
    layout = ext.PlanLayout(plan, len(inputs.k_pages))
    buffer = np.empty(layout.num_ints, np.int32)
    layout.pack(plan, buffer)
    expected, _, max_score = attention_reference(inputs)
    sinks = None if inputs.sinks is None else torch.tensor(inputs.sinks)
    for ops, its_plan in (
        (CpuOps(num_threads=1), plan),
        (FakeGpuOps(), FakeDevicePlan(layout, torch.tensor(buffer))),
    ):
        q, k_pages, v_pages = map(torch.tensor, (inputs.q, inputs.k_pages, inputs.v_pages))
        out = torch.empty_like(q)
        kind = {"softmax_scale": case.softmax_scale, "soft_cap": case.soft_cap, "sinks": sinks}
        ops.attention(its_plan, q, k_pages, v_pages, out=out, **kind)
        assert_close("out", out.numpy(), expected, tolerance(inputs, max_score))
