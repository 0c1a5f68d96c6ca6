"""Row operations of CUDA tensors: what is refused, and on a GPU the CPU's results.

Without a GPU the kernels of rms_norm and norm_rotate_append run in tests/simt, the threads of the others in
test_row_threads.cpp; what is left to the tests marked gpu is the launches.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import batchllm_ext as ext
from batchllm.device.ops import CpuOps, GpuOps
from tests.gpu import OnGpu, current_stream, needs_build
from tests.rows.test_row_ops import normal


def arguments(dtype: type = np.float16) -> dict[str, dict[str, np.ndarray]]:
    """Of each operation; 3 rows, 2 heads of 8."""
    heads, angles = np.ones((3, 2, 8), dtype), np.ones((3, 4), np.float32)
    return {
        "rms_norm": {"x": heads.copy(), "weight": np.ones(8, dtype), "out": heads.copy(), "delta": heads},
        "rotate": {"x": heads.copy(), "cos": angles, "sin": angles},
        "silu_and_mul": {"gate_up": np.ones((3, 16), dtype), "out": np.ones((3, 8), dtype)},
    }


def call_on(device_id: int, op: str, **changed) -> None:
    tensors = {name: OnGpu(array, device_id) for name, array in arguments()[op].items()}
    getattr(ext, op)(**tensors | changed, **({"eps": 1e-6} if op == "rms_norm" else {}))


OPS = list(arguments())


@pytest.mark.skipif(ext.has_cuda(), reason="this build has CUDA kernels")
@pytest.mark.parametrize("op", OPS)
def test_a_build_without_kernels_says_how_to_get_them(op: str):
    message = "got one on cuda:0: this build has no CUDA kernels: rebuild with BATCHLLM_CUDA=ON"
    with pytest.raises(ValueError, match=f"^{next(iter(arguments()[op]))}: .*{message}"):
        call_on(0, op)


@needs_build
@pytest.mark.parametrize("op", OPS)
def test_all_tensors_are_on_one_device(op: str):
    first, *others = arguments()[op]
    where = f"expected a tensor on cuda:3, where {first} is"
    for name in others:
        with pytest.raises(ValueError, match=f"^{name}: {where}, got one on the CPU"):
            call_on(3, op, **{name: arguments()[op][name]})
        with pytest.raises(ValueError, match=f"^{name}: {where}, got one on cuda:1"):
            call_on(3, op, **{name: OnGpu(arguments()[op][name], 1)})


@needs_build
def test_the_tensor_that_does_not_fit_is_named():
    wide, half = arguments(np.float32), arguments()
    transposed = np.ones((3, 8, 2), np.float16).transpose(0, 2, 1)
    for op, name, array, message in (
        ("rms_norm", "weight", wide["rms_norm"]["weight"], "expected float16, got float32"),
        ("rms_norm", "delta", wide["rms_norm"]["delta"], "expected float16, got float32"),
        ("rms_norm", "x", np.ones((3, 2, 8), np.int32), "expected float32 or bfloat16 or float16, got int32"),
        ("rotate", "cos", np.ones((3, 4), np.float16), "expected float32, got float16"),
        ("silu_and_mul", "out", wide["silu_and_mul"]["out"], "expected float16, got float32"),
    ):
        with pytest.raises(TypeError, match=f"^{name}: {message}"):
            call_on(99, op, **{name: OnGpu(array, 99)})
    for op, name, array, message in (
        ("rms_norm", "weight", half["rms_norm"]["weight"][:4], "size is 4, but x has 8"),
        ("rms_norm", "out", transposed, "expected stride 1 in its last dimension, got 2"),
        ("rotate", "sin", np.ones((3, 3), np.float32), "size / 2 is 3, but x has 4"),
        ("silu_and_mul", "gate_up", np.ones((3, 8), np.float16), "2 size is 8, but out has 16"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: {message}"):
            call_on(99, op, **{name: OnGpu(array, 99)})


@needs_build
@pytest.mark.parametrize("op", OPS)
def test_what_fits_only_lacks_the_device(op: str):
    with pytest.raises(RuntimeError, match=r"^cuda\w+Device\(.*\) failed at launch\.cuh:\d+: "):
        call_on(99, op)


@needs_build
@pytest.mark.parametrize("op", OPS)
def test_no_rows_need_no_gpu(op: str):
    rows = {name: OnGpu(array[:0], 99) for name, array in arguments()[op].items() if name != "weight"}
    call_on(99, op, **rows)


@pytest.mark.parametrize("op", OPS)
def test_float16_is_refused_on_the_cpu(op: str):
    with pytest.raises(TypeError, match="expected float32 or bfloat16, got float16"):
        getattr(ext, op)(**arguments()[op], **({"eps": 1e-6} if op == "rms_norm" else {}))


# On a GPU.

# Two roundings of nearly the same number; float16 is compared with float32, where x + delta is not rounded either.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bfloat16", "float16"])


def check_on_gpu(call: Callable[..., None], *tensors: Tensor) -> None:
    """call(*tensors, stream=) writes into some of them."""
    stream = current_stream()
    on_gpu = [tensor.cuda() for tensor in tensors]
    call(*on_gpu, stream=stream)
    on_cpu = [tensor.float() if tensor.dtype == torch.float16 else tensor.clone() for tensor in tensors]
    call(*on_cpu, stream=0)
    for ours, expected in zip(on_gpu, on_cpu, strict=True):
        tolerance = TOLERANCE.get(ours.dtype, 0.0)
        torch.testing.assert_close(ours.cpu(), expected.to(ours.dtype), rtol=tolerance, atol=1e-5, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, 7, 64, 80, 256, 257, 576, 4096, 8192, 8195])
@dtypes
def test_norms_on_a_gpu_are_those_on_the_cpu(dtype: torch.dtype, size: int):
    shapes = ((37, size), (size,), (37, size), (37, size))
    x, weight, delta, out = (normal(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes))
    check_on_gpu(lambda x, weight, out, **on: ext.rms_norm(x, weight, eps=1e-5, out=out, **on), x, weight, out)
    check_on_gpu(lambda x, weight, **on: ext.rms_norm(x, weight, eps=1e-5, out=x, **on), x, weight)
    check_on_gpu(
        lambda x, weight, out, delta, **on: ext.rms_norm(x, weight, eps=1e-5, out=out, delta=delta, **on),
        *(x, weight, out, delta),
    )


@pytest.mark.gpu
@pytest.mark.parametrize("size", [64, 80, 128, 300])
@dtypes
def test_norms_of_heads_on_a_gpu_stay_inside_them(dtype: torch.dtype, size: int):
    for first in (0, 1):  # from an aligned address, and from one that is not

        def norm(qkv: Tensor, weight: Tensor, first: int = first, **on) -> None:
            heads = qkv[:, 2:5, first : first + size]
            ext.rms_norm(heads, weight, eps=1e-6, out=heads, **on)

        check_on_gpu(norm, normal(33, 7, size + 8, dtype=dtype), normal(size, dtype=dtype, seed=1))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [2, 30, 64, 80, 128])
@dtypes
def test_rotations_on_a_gpu_are_those_on_the_cpu(dtype: torch.dtype, size: int):
    angles = 10 * normal(33, size // 2, dtype=torch.float32, seed=1)
    for first in (0, 1):

        def rotate(qkv: Tensor, cos: Tensor, sin: Tensor, first: int = first, **on) -> None:
            ext.rotate(qkv[:, 1:4, first : first + size], cos, sin, **on)

        check_on_gpu(rotate, normal(33, 6, size + 8, dtype=dtype), angles.cos(), angles.sin())


def layer_arguments() -> dict[str, np.ndarray]:
    """Of norm_rotate_append: 3 rows of 2 + 1 + 1 heads of 16, 2 pages of 4 slots."""
    angles, pages, weight = np.ones((3, 8), np.float32), np.ones((2, 4, 1, 16), np.float16), np.ones(16, np.float16)
    return {
        "qkv": np.ones((3, 4, 16), np.float16),
        **{"cos": angles, "sin": angles.copy(), "slots": np.arange(3)},
        **{"k_pages": pages, "v_pages": pages.copy(), "q_norm": weight, "k_norm": weight.copy()},
    }


def test_q_k_and_v_are_prepared_at_once_on_a_gpu_only():
    with pytest.raises(ValueError, match=r"^qkv: expected a CUDA tensor, got one on the CPU"):
        ext.norm_rotate_append(**layer_arguments())


@needs_build
def test_the_tensor_of_a_layer_that_does_not_fit_is_named():
    half, single = np.ones((3, 4, 24), np.float16), np.ones((3, 4, 16), np.float32)
    for name, array, message in (
        ("qkv", single, "qkv: expected bfloat16 or float16, got float32"),
        ("sin", np.ones((3, 8), np.float16), "sin: expected float32, got float16"),
        ("q_norm", np.ones(16, np.float32), "q_norm: expected float16, got float32"),
    ):
        tensors = {key: OnGpu(value, 99) for key, value in (layer_arguments() | {name: array}).items()}
        with pytest.raises(TypeError, match=f"^{message}"):
            ext.norm_rotate_append(**tensors)
    for name, array, message in (
        ("qkv", half, "qkv: expected a size of at most 256 and a multiple of 16, got 24"),
        ("qkv", half[:, :1, :16], "qkv: expected at least 2 heads, those of k and v, got 1"),
        ("cos", np.ones((3, 4), np.float32), "cos: size / 2 is 4, but qkv has 8"),
        ("slots", np.arange(4), "slots: num_rows is 4, but qkv has 3"),
        ("v_pages", np.ones((2, 4, 1, 8), np.float16), "v_pages: size is 8, but qkv has 16"),
        ("k_norm", np.ones(8, np.float16), "k_norm: size is 8, but qkv has 16"),
    ):
        tensors = {key: OnGpu(value, 99) for key, value in (layer_arguments() | {name: array}).items()}
        with pytest.raises(ValueError, match=f"^{message}"):
            ext.norm_rotate_append(**tensors)
    tensors = {key: OnGpu(value, 99) for key, value in layer_arguments().items()}
    with pytest.raises(ValueError, match=r"^q_norm, k_norm: expected both or neither"):
        ext.norm_rotate_append(**tensors | {"k_norm": None})
    with pytest.raises(ValueError, match=r"^slots: expected a tensor on cuda:99, where qkv is, got one on cuda:1"):
        ext.norm_rotate_append(**tensors | {"slots": OnGpu(np.arange(3), 1)})


@pytest.mark.gpu
@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("size", [64, 96, 128, 256])
def test_q_k_and_v_on_a_gpu_are_those_on_the_cpu(size: int, has_norms: bool):
    def prepare(qkv, cos, sin, slots, k_pages, v_pages, q_norm, k_norm, **on) -> None:
        norms = (q_norm, k_norm) if has_norms else None
        ops = GpuOps() if qkv.is_cuda else CpuOps()
        ops.norm_rotate_append(qkv, norms, (cos, sin), slots, k_pages, v_pages, eps=1e-5)
        qkv[:, 6:] = 0  # k and v may be anything

    shapes = ((37, 10, size), (5, 16, 2, size), (5, 16, 2, size), (size,), (size,))
    qkv, k_pages, v_pages, q_norm, k_norm = (
        normal(*shape, dtype=torch.bfloat16, seed=i) for i, shape in enumerate(shapes)
    )
    angles = normal(37, size // 2, dtype=torch.float32, seed=9)
    slots = torch.randperm(80)[:37]
    check_on_gpu(prepare, qkv, angles.cos(), angles.sin(), slots, k_pages, v_pages, q_norm, k_norm)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, 15, 80, 1536, 14336])
@dtypes
def test_gates_on_a_gpu_are_those_on_the_cpu(dtype: torch.dtype, size: int):
    gate_up, out = normal(33, 2 * size, dtype=dtype, scale=8.0), normal(33, size, dtype=dtype)
    gate_up[0, 0], gate_up[1, 0], gate_up[2, 0] = -torch.inf, -1e4, torch.nan
    check_on_gpu(lambda gate_up, out, **on: ext.silu_and_mul(gate_up, out=out, **on), gate_up, out)


@pytest.mark.gpu
def test_a_graph_captures_all_three():
    stream = current_stream()
    x, delta, weight = (
        normal(9, *shape, dtype=torch.bfloat16, seed=i).cuda() for i, shape in enumerate([(2, 576), (2, 576), (576,)])
    )
    heads, out = torch.empty_like(x), torch.empty(9, 576, dtype=torch.bfloat16, device="cuda")
    angles = normal(9, 288, dtype=torch.float32).cuda()
    cos, sin = angles.cos(), angles.sin()

    def run(x: Tensor) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        ext.rms_norm(x, weight[0], eps=1e-6, out=heads, delta=delta, stream=stream)
        ext.rotate(heads, cos, sin, stream=stream)
        ext.silu_and_mul(heads.flatten(1), out=out, stream=stream)

    before, total = x.clone(), x.clone()
    run(total)
    expected = out.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        assert torch.cuda.current_stream().cuda_stream != stream
        run(x)
    out.fill_(torch.nan)
    x.copy_(before)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)
    assert torch.equal(x, total)
