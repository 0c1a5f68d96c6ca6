"""torch.ops.batchllm: what torch's own checks say, graphs without a break, and values against torch's arithmetic."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from batchllm.integrations import torch_ops
from tests.cases import Case, Inputs, Request, decodes, prefix
from tests.gpu import needs_build, on_gpu
from tests.reference import assert_close, attention_reference

ops = torch.ops.batchllm
EPS = 1e-5


def planned(inputs: Inputs) -> tuple[torch_ops.Plan, tuple[Tensor, Tensor, Tensor]]:
    plan = torch_ops.Plan(*inputs.arrays.values(), **heads(inputs.case))
    return plan, tuple(torch.from_numpy(x) for x in (inputs.q, inputs.k_pages, inputs.v_pages))


def heads(case: Case) -> dict[str, int]:
    return {name: getattr(case, name) for name in ("num_qo_heads", "num_kv_heads", "head_dim", "page_size")}


def case_of(own: list[int]) -> Case:
    return Case("tree", [*decodes(prefix(40), own), Request(prefix(40), 7, 5)], 4, 2, head_dim=16)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def draw_columns(rows: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    ones = torch.ones(rows)
    return ones, torch.zeros(rows, dtype=torch.int32), ones, 0 * ones, torch.rand(rows, generator=generator).double()


def samples(dtype: torch.dtype) -> dict[str, tuple]:
    """Arguments of every operator but attention, whose plan must be kept."""
    state = random(5, 3, 8, dtype=dtype), random(5, 3)
    states = random(5, 4, 3, 8, dtype=dtype), random(5, 4, 3)
    slots = torch.tensor([3, 9, 0])
    pages = [torch.zeros(3, 4, 2, 8, dtype=dtype) for _ in range(2)]
    angles = random(5, 4, seed=1), random(5, 4, seed=2)
    x, weight = random(5, 8, dtype=dtype), random(8, dtype=dtype)
    allowed = torch.tensor([[0b1011]], dtype=torch.int32), torch.tensor([0, -1, -1, 0, 0], dtype=torch.int32)
    return {
        "merge_state": (*state, *state),
        "merge_states": (*states, "2"),
        "append_kv": (random(3, 2, 8, dtype=dtype), random(3, 2, 8, dtype=dtype), slots, *pages),
        "rms_norm": (x, weight, EPS),
        "add_rms_norm": (x, random(5, 8, seed=1, dtype=dtype), weight, EPS),
        "rotate": (random(5, 3, 8, dtype=dtype), *angles),
        "silu_and_mul": (x,),
        "sample": (random(5, 20, dtype=dtype), *draw_columns(5), *allowed),
    }


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@DTYPES
@pytest.mark.parametrize("name", samples(torch.float32))
def test_torch_finds_nothing_wrong(name: str, dtype: torch.dtype) -> None:
    torch.library.opcheck(getattr(ops, name).default, samples(dtype)[name])


@DTYPES
def test_torch_finds_nothing_wrong_with_attention(dtype: torch.dtype) -> None:
    plan, tensors = planned(case_of([3, 5]).make_inputs(poison=0.0))
    sinks = random(4)
    tensors = tuple(x.to(dtype) for x in tensors)
    torch.library.opcheck(ops.attention.default, (*tensors, plan.handle, 0.3, 5.0, sinks))
    torch.library.opcheck(ops.attention.default, (*tensors, plan.handle))


@pytest.mark.gpu
@needs_build
@pytest.mark.parametrize("name", samples(torch.float32))
def test_torch_finds_nothing_wrong_on_a_gpu(name: str) -> None:
    arguments = [x.cuda() if isinstance(x, Tensor) else x for x in samples(torch.float16)[name]]
    torch.library.opcheck(getattr(ops, name).default, arguments)


@pytest.mark.gpu
@needs_build
def test_attention_on_a_gpu_is_that_of_the_plan() -> None:
    case = Case("tree", decodes(prefix(40), [3, 5, 21]), 4, 2, head_dim=64)
    inputs = case.make_inputs()
    plan = torch_ops.Plan(*inputs.arrays.values(), device="cuda", **heads(case))
    tensors = [on_gpu(x, "float16") for x in (inputs.q, inputs.k_pages, inputs.v_pages)]
    out, _ = ops.attention(*tensors, plan.handle)
    assert_close("out", out.float().cpu().numpy(), attention_reference(inputs)[0], 1e-2)


def test_every_operator_is_checked() -> None:
    registered = {
        name.removeprefix("batchllm::") for name in torch._C._dispatch_get_all_op_names() if "batchllm::" in name
    }
    assert registered == {*samples(torch.float32), "attention"}


def test_attention_is_that_of_the_plan() -> None:
    inputs = case_of([3, 5, 21]).make_inputs()
    plan, tensors = planned(inputs)
    out, lse = ops.attention(*tensors, plan.handle)
    expected_out, expected_lse, _ = attention_reference(inputs)
    assert_close("out", out.numpy(), expected_out, 1e-5)
    assert_close("lse", lse.numpy(), expected_lse, 1e-5)


def test_a_handle_dies_with_its_plan() -> None:
    plan, tensors = planned(case_of([3]).make_inputs())
    handle = plan.handle
    del plan
    gc.collect()
    with pytest.raises(ValueError, match=r"plan: expected the handle of a live Plan, got \d+"):
        ops.attention(*tensors, handle)


def test_row_operators_are_torch_s_formulas() -> None:
    x, delta, weight = random(5, 8), random(5, 8, seed=1), random(8, seed=2)
    normed = torch.nn.functional.rms_norm(x, (8,), weight, EPS)
    torch.testing.assert_close(ops.rms_norm(x, weight, EPS), normed)
    total = x.clone()
    out = ops.add_rms_norm(total, delta, weight, EPS)
    torch.testing.assert_close(total, x + delta)
    torch.testing.assert_close(out, torch.nn.functional.rms_norm(x + delta, (8,), weight, EPS))
    torch.testing.assert_close(ops.silu_and_mul(x), torch.nn.functional.silu(x[:, :4]) * x[:, 4:])
    heads_, cos, sin = random(5, 3, 8), random(5, 4, seed=1), random(5, 4, seed=2)
    first, second = heads_.clone().split(4, dim=2)
    ops.rotate(heads_, cos, sin)
    c, s = cos[:, None], sin[:, None]
    torch.testing.assert_close(heads_, torch.cat([first * c - second * s, second * c + first * s], dim=2))


def test_draws_and_merges() -> None:
    logits = random(5, 20)
    _, top_k, *columns = draw_columns(5)
    token_ids, logprobs, lse = ops.sample(logits, torch.zeros(5), top_k, *columns)
    assert torch.equal(token_ids.long(), logits.argmax(1))
    torch.testing.assert_close(lse, logits.logsumexp(1))
    torch.testing.assert_close(logprobs, logits.log_softmax(1).max(1).values)
    outs, lses = random(5, 4, 3, 8), random(5, 4, 3)
    out, lse = ops.merge_states(outs, lses)
    torch.testing.assert_close(out, (lses.softmax(1)[..., None] * outs).sum(1))
    torch.testing.assert_close(lse, lses.logsumexp(1))
    two, _ = ops.merge_state(outs[:, 0], lses[:, 0], outs[:, 1], lses[:, 1])
    torch.testing.assert_close(two, ops.merge_states(outs[:, :2], lses[:, :2])[0])


class Layer(torch.nn.Module):
    """A decoder's layer but for its projections."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(random(size))

    def forward(self, x, q, k, slots, k_pages, v_pages, cos, sin, plan):
        normed = ops.rms_norm(x, self.weight, EPS)
        ops.rotate(q, cos, sin)
        ops.append_kv(k, k + 1, slots, k_pages, v_pages)
        out, _ = ops.attention(q, k_pages, v_pages, plan)
        return ops.add_rms_norm(x, out.flatten(1) + normed, self.weight, EPS) + ops.silu_and_mul(torch.cat([x, x], 1))


def layer_arguments(own: list[int]) -> tuple[torch_ops.Plan, tuple[Tensor, ...]]:
    inputs = case_of(own).make_inputs(poison=0.0)
    plan, (q, k_pages, v_pages) = planned(inputs)
    rows = len(q)
    slots = torch.arange(rows) + 4  # whatever stands there
    x, k = random(rows, 64), random(rows, 2, 16)
    return plan, (x, q, k, slots, k_pages, v_pages, random(rows, 8), random(rows, 8), plan.handle)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_a_layer_is_one_graph_for_every_batch(backend: str) -> None:
    layer = Layer(64)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for call, own in enumerate([[3, 5], [1, 40, 7, 2], [30]]):
        plan, arguments = layer_arguments(own)
        copies = [argument.clone() for argument in arguments]
        with torch.no_grad():
            expected = layer(*arguments)
            with torch.compiler.set_stance("default" if call == 0 else "fail_on_recompile"):
                torch.testing.assert_close(compiled(*copies), expected)
        for copy, argument in zip(copies, arguments, strict=True):  # x, q and the pages were written
            torch.testing.assert_close(copy, argument, equal_nan=True)
        assert plan.handle == arguments[-1]


def test_gradients_are_refused_where_they_are_asked_for() -> None:
    weight = random(8).requires_grad_()
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        ops.rms_norm(random(5, 8), weight, EPS).sum().backward()
