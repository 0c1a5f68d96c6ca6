"""How a plan comes to a GPU, on a CPU whose tensors claim to lie there."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import batchllm_ext
from batchllm.integrations import planned_attention
from batchllm.integrations.planned_attention import PlannedAttention
from tests.cases import Case, decodes, prefix
from tests.engine.fake_gpu import FakeDevicePlan, Scores, execute
from tests.reference import assert_close, attention_reference


class ClaimsCuda(torch.Tensor):
    is_cuda = True


@pytest.fixture
def device_plans(monkeypatch: pytest.MonkeyPatch) -> list[FakeDevicePlan]:
    """Those that are made."""
    made: list[FakeDevicePlan] = []

    def new_device_plan(layout, buffer, workspace) -> FakeDevicePlan:
        assert len(workspace) >= layout.num_workspace_floats
        made.append(FakeDevicePlan(layout, buffer))
        return made[-1]

    def attention(plan, q, k_pages, v_pages, *, out, lse, softmax_scale, soft_cap, sinks, stream) -> None:
        assert (lse, softmax_scale, stream) == (None, None, 7)
        execute(plan.arrays(), q, k_pages, v_pages, out, Scores(q.shape[2] ** -0.5, soft_cap, sinks))

    names = {name: getattr(batchllm_ext, name) for name in ("plan_attention", "nearest_gpu", "PlanLayout")}
    ext = SimpleNamespace(**names, DevicePlan=new_device_plan, attention=attention)
    monkeypatch.setattr(planned_attention, "ext", ext)
    monkeypatch.setattr(planned_attention, "stream_of", lambda tensor: 7)
    gpu = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, multi_processor_count=6)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    return made


def test_a_plan_is_uploaded_once_for_a_pool(device_plans: list[FakeDevicePlan]) -> None:
    case = Case("gpu", [*decodes(prefix(70), [3, 40]), *decodes((), [5])], 4, 2, head_dim=64, soft_cap=3.0)
    inputs = case.make_inputs()
    heads = {name: getattr(case, name) for name in ("num_qo_heads", "num_kv_heads", "head_dim", "page_size")}
    attend = PlannedAttention(tuple(inputs.arrays.values()), torch.device("cuda"), **heads)
    assert attend.plan.num_threads == 6
    q, k_pages, v_pages = (
        torch.from_numpy(x).as_subclass(ClaimsCuda) for x in (inputs.q, inputs.k_pages, inputs.v_pages)
    )
    expected, _, _ = attention_reference(inputs)
    for pages in (k_pages, k_pages, torch.cat([k_pages, k_pages])):
        out = torch.full(q.shape, torch.nan)
        attend(q, pages, v_pages, out=out, lse=None, softmax_scale=None, soft_cap=3.0, sinks=None)
        assert_close("out", np.asarray(out), expected, 1e-5)
    assert [plan.layout.num_ints for plan in device_plans] == [device_plans[0].layout.num_ints] * 2


def test_a_cpu_takes_the_plan_itself() -> None:
    case = Case("cpu", decodes(prefix(70), [3, 40]), 4, 2, head_dim=16)
    inputs = case.make_inputs()
    heads = {name: getattr(case, name) for name in ("num_qo_heads", "num_kv_heads", "head_dim", "page_size")}
    attend = PlannedAttention(tuple(inputs.arrays.values()), torch.device("cpu"), **heads)
    q, k_pages, v_pages = map(torch.from_numpy, (inputs.q, inputs.k_pages, inputs.v_pages))
    out = torch.full(q.shape, torch.nan)
    attend(q, k_pages, v_pages, out=out, lse=None)
    assert_close("out", out.numpy(), attention_reference(inputs)[0], 1e-5)
