"""attention() on a GPU against the float64 reference, as a call and as a CUDA graph whose plans change.

Without a GPU the same kernels run in tests/simt, and the same launches by launch_attention; what is left to these tests
is launch.cuh and the bindings.
"""

import pytest
import torch

from tests.cases import ATTENTION_CASES, Case, Inputs, Request, decodes, prefix
from tests.gpu import GpuAttention, current_stream, plan_for_gpu
from tests.simt.backend import Result, rounded, supports
from tests.simt.generated import generated_case
from tests.simt.precision import check

pytestmark = pytest.mark.gpu

CASES = [case for case in ATTENTION_CASES if supports(case)]


def run_once(inputs: Inputs, dtype: str, **plan_options) -> Result:
    current_stream()
    plan = plan_for_gpu(inputs, **plan_options)
    attention = GpuAttention(inputs, dtype, plan, spare=7)
    attention.upload(inputs, plan)
    attention.run()
    return Result(*attention.results(len(inputs.q)), counts=None)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("share", [True, "always", False], ids=["shared", "always_shared", "per_request"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_on_a_gpu_matches_the_reference(case: Case, share: bool | str, dtype: str):
    if dtype == "float16" and case.score_shift:
        pytest.skip("the scores' size is beyond float16")
    inputs = rounded(case.make_inputs(), dtype)
    check(inputs, run_once(inputs, dtype, share=share), dtype, on_gpu=True)


@pytest.mark.parametrize("number", range(200))
def test_attention_on_a_gpu_matches_the_reference_on_generated_forests(number: int):
    inputs = rounded(generated_case(number).make_inputs(), "bfloat16")
    check(inputs, run_once(inputs, "bfloat16", share="always" if number % 2 else True), "bfloat16", on_gpu=True)


def test_a_graph_is_replayed_with_other_plans():
    """The first plan is the largest; then come smaller ones, none at all, and the first again."""
    current_stream()
    requests = [*decodes(prefix(300), [5, 40, 7]), *decodes(prefix(90, "b"), [1] * 30), Request((), 20, 3)]
    cases = [Case("graph", chosen) for chosen in (requests, requests[1:4], requests[10:20], [], requests)]
    all_inputs = [rounded(case.make_inputs(), "bfloat16") for case in cases]
    num_pages = max(len(inputs.k_pages) for inputs in all_inputs)
    for inputs in all_inputs:  # one pool for all
        for name in ("k_pages", "v_pages"):
            pages = getattr(inputs, name)
            setattr(inputs, name, pages[[*range(len(pages)), *[len(pages) - 1] * (num_pages - len(pages))]])
    plans = [plan_for_gpu(inputs, share="always") for inputs in all_inputs]
    attention = GpuAttention(all_inputs[0], "bfloat16", plans[0], spare=3)
    attention.upload(all_inputs[0], plans[0])
    attention.run()  # what a kernel needs once is there before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention.run()
    for inputs, plan in zip(all_inputs, plans, strict=True):
        attention.out.fill_(torch.nan)
        attention.upload(inputs, plan)
        graph.replay()
        check(inputs, Result(*attention.results(len(inputs.q)), counts=None), "bfloat16", on_gpu=True)
        assert attention.out[len(inputs.q) :].isnan().all(), "rows that the plan does not have are not written"
