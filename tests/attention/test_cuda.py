"""CUDA tensors: what takes them, where they must lie, and what is said where they cannot be used.

The kernels themselves are compared with the CPU in test_cuda_threads.cpp, and here and in test_cuda_attention.py where
there is a GPU.
"""

import numpy as np
import pytest
import torch

import batchllm_ext
from tests.cases import Case, attention_cases, decodes, prefix
from tests.gpu import OnGpu, current_stream, needs_build


def append_arguments() -> dict[str, np.ndarray]:
    return {
        "k": np.ones((3, 2, 8), np.float32),
        "v": np.ones((3, 2, 8), np.float32),
        "slots": np.arange(3),
        "k_pages": np.zeros((2, 4, 2, 8), np.float32),
        "v_pages": np.zeros((2, 4, 2, 8), np.float32),
    }


def append_on(device_id: int, **changed) -> None:
    arguments = {name: OnGpu(array, device_id) for name, array in append_arguments().items()}
    batchllm_ext.append_kv(**arguments | changed)


def test_plans_are_made_on_the_cpu_and_attention_on_a_gpu_takes_a_device_plan():
    inputs = attention_cases()[0].make_inputs()
    plan = batchllm_ext.plan_attention(**inputs.plan_arguments)
    message = "expected a CPU tensor, got one on cuda:1: only kernels take CUDA tensors, attention with a DevicePlan"
    with pytest.raises(ValueError, match=f"^q: {message}"):
        batchllm_ext.attention(plan, OnGpu(inputs.q, 1), inputs.k_pages, inputs.v_pages)
    arguments = inputs.plan_arguments
    with pytest.raises(ValueError, match=f"^span_begin: {message}"):
        batchllm_ext.plan_attention(**arguments | {"span_begin": OnGpu(arguments["span_begin"], 1)})


@pytest.mark.skipif(batchllm_ext.has_cuda(), reason="this build has CUDA kernels")
def test_a_build_without_kernels_says_how_to_get_them():
    message = "got one on cuda:0: this build has no CUDA kernels: rebuild with BATCHLLM_CUDA=ON"
    with pytest.raises(ValueError, match=f"k: .*{message}"):
        append_on(0)
    out, lse = OnGpu(np.zeros((1, 2, 3, 4), np.float32)), OnGpu(np.zeros((1, 2, 3), np.float32))
    with pytest.raises(ValueError, match=f"out: .*{message}"):
        batchllm_ext.merge_states(out, lse)
    with pytest.raises(ValueError, match=f"out_a: .*{message}"):
        batchllm_ext.merge_state(out, lse, out, lse)
    with pytest.raises(ValueError, match=f"buffer: .*{message}"):
        DeviceAttention(0)


class DeviceAttention:
    """A call of attention() with a DevicePlan, of which tensors may be changed."""

    def __init__(self, device_id: int, **changed):
        self.inputs = Case("device", decodes(prefix(50), [3, 4])).make_inputs()
        plan = batchllm_ext.plan_attention(**self.inputs.plan_arguments, share="always")
        self.layout = batchllm_ext.PlanLayout(plan, len(self.inputs.k_pages))
        buffers = {
            "buffer": np.zeros(self.layout.num_ints, np.int32),
            "workspace": np.zeros(self.layout.num_workspace_floats, np.float32),
        }
        self.plan = batchllm_ext.DevicePlan(
            self.layout, **{name: OnGpu(array, device_id) for name, array in buffers.items()} | changed
        )
        tensors = {name: getattr(self.inputs, name).astype(np.float16) for name in ("q", "k_pages", "v_pages")}
        tensors |= {"out": tensors["q"].copy(), "lse": np.zeros(tensors["q"].shape[:2], np.float32)}
        self.tensors = {name: OnGpu(array, device_id) for name, array in tensors.items()}

    def __call__(self, **changed) -> None:
        batchllm_ext.attention(self.plan, **self.tensors | changed)


@needs_build
def test_a_device_plan_lies_on_one_gpu_and_has_its_size():
    layout = DeviceAttention(99).layout
    num_ints, num_floats = layout.num_ints, layout.num_workspace_floats
    assert num_floats == layout.sizes["num_partial_rows"] * 8 * (64 // 2 + 1)
    for name, tensor, error, message in (
        ("buffer", np.zeros(num_ints, np.int32), ValueError, "expected a CUDA tensor, got one on the CPU"),
        ("buffer", OnGpu(np.zeros(num_ints + 1, np.int32), 99), ValueError, f"num_ints is {num_ints + 1}, but the"),
        ("buffer", OnGpu(np.zeros(num_ints, np.int64), 99), TypeError, "expected int32, got int64"),
        ("workspace", OnGpu(np.zeros(num_floats - 1, np.float32), 99), ValueError, f"expected at least {num_floats} e"),
        (
            "workspace",
            OnGpu(np.zeros(num_floats, np.float32), 1),
            ValueError,
            "expected a tensor on cuda:99, where buf",
        ),
        ("workspace", OnGpu(np.zeros(num_floats, np.float16), 99), TypeError, "expected float32, got float16"),
    ):
        with pytest.raises(error, match=f"^{name}: {message}"):
            DeviceAttention(99, **{name: tensor})


@needs_build
def test_attention_on_a_gpu_names_the_tensor_that_does_not_fit():
    call = DeviceAttention(99)
    arrays = {name: tensor.array for name, tensor in call.tensors.items()}
    heads = np.zeros((2, 8, 72), np.float16)[..., :64]  # heads 72 elements apart
    odd = np.zeros((2, 8, 68), np.float16)[..., :64]
    shifted = np.zeros(2 * 8 * 64 + 8, np.float16)[4:][: 2 * 8 * 64].reshape(2, 8, 64)
    for name, array, message in (
        ("q", arrays["q"].astype(np.float32), "expected bfloat16 or float16, got float32"),
        ("v_pages", arrays["v_pages"].astype(np.float32), "expected bfloat16 or float16, got float32"),
        ("lse", arrays["lse"].astype(np.float16), "expected float32, got float16"),
        ("sinks", np.zeros(8, np.float16), "expected float32, got float16"),
    ):
        with pytest.raises(TypeError, match=f"^{name}: {message}"):
            call(**{name: OnGpu(array, 99)})
    for name, array, message in (
        ("q", arrays["q"][:1], "num_tokens is 1, but the plan has 2"),
        ("q", arrays["q"][..., :32], "head_dim is 32, but the plan has 64"),
        ("k_pages", arrays["k_pages"][:3], "num_pages is 3, but the plan has"),
        ("q", odd, "expected strides that are a multiple of 16 bytes"),
        ("out", shifted, "expected an address that is a multiple of 16 bytes"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: {message}"):
            call(**{name: OnGpu(array, 99)})
    for name in ("q", "k_pages", "v_pages", "out", "lse"):
        with pytest.raises(
            ValueError, match=f"^{name}: expected a tensor on cuda:99, where \\w+ is, got one on cuda:1"
        ):
            call(**{name: OnGpu(arrays[name], 1)})
    with pytest.raises(ValueError, match=r"^k_pages: expected a CUDA tensor, got one on the CPU"):
        call(k_pages=arrays["k_pages"])
    # All of this fits: what is left to fail is the device.
    with pytest.raises(RuntimeError, match=r"^cuda\w+Device\(.*\) failed at launch\.cuh:\d+: "):
        call(q=OnGpu(heads, 99), sinks=OnGpu(np.zeros(8, np.float32), 99))


@needs_build
def test_all_tensors_are_on_one_device():
    arguments = append_arguments()
    for name in ("v", "slots", "k_pages", "v_pages"):
        with pytest.raises(ValueError, match=f"^{name}: expected a tensor on cuda:3, where k is, got one on the CPU"):
            append_on(3, **{name: arguments[name]})
    with pytest.raises(ValueError, match=r"^v: expected a tensor on the CPU, where k is, got one on cuda:1"):
        append_on(1, k=arguments["k"])
    out, lse = np.zeros((1, 3, 4), np.float32), np.zeros((1, 3), np.float32)
    with pytest.raises(ValueError, match=r"^lse_a: expected a tensor on cuda:0, where out_a is, got one on cuda:1"):
        batchllm_ext.merge_state(OnGpu(out), OnGpu(lse, 1), out, lse)
    with pytest.raises(ValueError, match=r"^out_b: expected a tensor on cuda:0, where out_a is, got one on the CPU"):
        batchllm_ext.merge_state(OnGpu(out), OnGpu(lse), out, lse)


@needs_build
def test_a_failed_cuda_call_names_itself_and_its_place():
    with pytest.raises(RuntimeError, match=r"^cuda\w+Device\(.*\) failed at launch\.cuh:\d+: "):
        append_on(99)


@needs_build
def test_no_tokens_need_no_gpu():
    arguments = append_arguments()
    append_on(99, **{name: OnGpu(arguments[name][:0], 99) for name in ("k", "v", "slots")})


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [7, 64])
def test_append_on_a_gpu_is_append_on_the_cpu(head_dim: int):
    stream = current_stream()
    k, v = torch.randn(2, 30, 3, head_dim).bfloat16()
    slots = torch.randperm(40)[:30]
    tensors = [k, v, slots, torch.zeros(10, 4, 3, head_dim).bfloat16(), torch.zeros(10, 4, 3, head_dim).bfloat16()]
    on_gpu = [tensor.cuda() for tensor in tensors]
    batchllm_ext.append_kv(*tensors)
    batchllm_ext.append_kv(*on_gpu, stream=stream)
    assert all(torch.equal(x, y.cpu()) for x, y in zip(tensors, on_gpu, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("lse_base", ["e", "2"])
def test_merging_on_a_gpu_is_merging_on_the_cpu(lse_base: str):
    stream = current_stream()
    out, lse = torch.randn(9, 3, 4, 33), 5 * torch.randn(9, 3, 4)
    lse[:, 1], out[:, 1] = torch.inf, torch.nan
    expected = batchllm_ext.merge_states(out, lse, lse_base=lse_base)
    merged = batchllm_ext.merge_states(out.cuda(), lse.cuda(), lse_base=lse_base, stream=stream)
    for x, y in zip(merged, expected, strict=True):
        assert x.is_cuda
        torch.testing.assert_close(x.cpu(), y, rtol=1e-5, atol=1e-5)
