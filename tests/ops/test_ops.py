"""What runs between matrix products on a GPU is torch's: the same expressions, here on the CPU, against its kernels."""

import pytest
import torch

from batchllm.ops import CpuOps, GpuOps
from tests.ops.test_row_ops import dtypes, normal

CPU, GPU = CpuOps(num_threads=1), GpuOps()


def assert_same_but_for_rounding(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.dtype == b.dtype
    torch.testing.assert_close(a, b, rtol=2**-7 if a.dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@dtypes
def test_norms_are_the_same(dtype):
    for with_delta in (False, True):
        x, weight, delta = (normal(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(7, 80), (80,), (7, 80)]))
        results = []
        for ops in (CPU, GPU):
            total, out = x.clone(), torch.empty_like(x)
            ops.rms_norm(total, weight, eps=1e-5, out=out, delta=delta if with_delta else None)
            results.append((total, out))
        assert torch.equal(results[0][0], results[1][0])
        assert_same_but_for_rounding(results[0][1], results[1][1])


@dtypes
def test_norms_of_heads_may_be_in_place(dtype):
    qkv, weight = normal(5, 6, 64, dtype=dtype), normal(64, dtype=dtype, seed=1)
    results = [qkv.clone(), qkv.clone()]
    for ops, result in zip((CPU, GPU), results, strict=True):
        ops.rms_norm(result[:, 2:4], weight, eps=1e-6, out=result[:, 2:4])
    assert_same_but_for_rounding(*results)


@dtypes
def test_rotations_are_the_same(dtype):
    qkv, angles = normal(5, 4, 64, dtype=dtype), 10 * normal(5, 32, dtype=torch.float32, seed=1)
    results = [qkv.clone(), qkv.clone()]
    for ops, result in zip((CPU, GPU), results, strict=True):
        ops.rotate(result[:, 1:3], angles.cos(), angles.sin())
    assert_same_but_for_rounding(*results)


@dtypes
def test_gates_are_the_same(dtype):
    gate_up = normal(7, 160, dtype=dtype, scale=4.0)
    results = [torch.empty(7, 80, dtype=dtype) for _ in range(2)]
    for ops, result in zip((CPU, GPU), results, strict=True):
        ops.silu_and_mul(gate_up, out=result)
    assert_same_but_for_rounding(*results)


@dtypes
def test_the_largest_logit_and_the_sum_of_exponentials_are_the_same(dtype):
    logits = normal(9, 5003, dtype=dtype, scale=4.0)
    logits[3, [17, 400]] = logits[3].max() + 1  # the first of equals
    (cpu_ids, cpu_lse), (gpu_ids, gpu_lse) = (ops.argmax_and_lse(logits) for ops in (CPU, GPU))
    assert cpu_ids.dtype == gpu_ids.dtype == torch.int32
    assert cpu_ids[3] == 17
    assert torch.equal(cpu_ids, gpu_ids)
    assert cpu_lse.dtype == gpu_lse.dtype == torch.float32
    torch.testing.assert_close(cpu_lse, gpu_lse)


@pytest.mark.parametrize("num_rows", [0, 1])
def test_few_rows_are_no_exception(num_rows):
    x = torch.zeros(num_rows, 8)
    for ops in (CPU, GPU):
        ops.rms_norm(x, torch.ones(8), eps=1e-6, out=x)
        ops.silu_and_mul(torch.zeros(num_rows, 16), out=x)
        assert len(ops.argmax_and_lse(x)[0]) == num_rows
