"""What the driver asks of a GPU between matrix products, asked of the CPU; and what is torch's there: the logits."""

import pytest
import torch

from batchllm.device.ops import CpuOps, GpuOps
from tests.engine.fake_gpu import FakeGpuOps
from tests.ops.test_row_ops import dtypes, normal


@dtypes
def test_both_devices_are_asked_for_the_same(dtype):
    weight, delta, cos, sin = (normal(*shape, dtype=dtype) for shape in ((64,), (5, 64), (5, 32), (5, 32)))
    results = []
    for ops in (CpuOps(num_threads=1), FakeGpuOps()):
        x, qkv, gated = normal(5, 64, dtype=dtype), normal(5, 4, 64, dtype=dtype), torch.empty(5, 32, dtype=dtype)
        ops.rms_norm(qkv[:, :2], weight, eps=1e-6, out=qkv[:, :2])
        ops.rotate(qkv[:, 1:3], cos.float(), sin.float())
        normed = torch.empty_like(x)
        ops.rms_norm(x, weight, eps=1e-1, out=normed, delta=delta)
        ops.silu_and_mul(normed, out=gated)
        results.append((x, qkv, normed, gated))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@dtypes
def test_the_largest_logit_and_the_sum_of_exponentials_are_the_same(dtype):
    logits = normal(9, 5003, dtype=dtype, scale=4.0)
    logits[3, [17, 400]] = logits[3].max() + 1  # the first of equals
    (cpu_ids, cpu_lse), (gpu_ids, gpu_lse) = (ops.argmax_and_lse(logits) for ops in (CpuOps(num_threads=1), GpuOps()))
    assert cpu_ids.dtype == gpu_ids.dtype == torch.int32
    assert cpu_ids[3] == 17
    assert torch.equal(cpu_ids, gpu_ids)
    assert cpu_lse.dtype == gpu_lse.dtype == torch.float32
    torch.testing.assert_close(cpu_lse, gpu_lse)


@pytest.mark.parametrize("num_rows", [0, 1])
def test_logits_of_few_rows_are_no_exception(num_rows):
    for ops in (CpuOps(num_threads=1), GpuOps()):
        assert len(ops.argmax_and_lse(torch.zeros(num_rows, 8))[0]) == num_rows
