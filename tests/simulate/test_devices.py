"""The devices of estimates."""

import pytest
import torch

from batchllm.device.cpu_rates import CpuRates, MeasuredRates
from batchllm.estimate.devices import device_by_name
from batchllm.estimate.roofline import DEVICES

RATES = CpuRates(product_flops_per_s=4e11, weight_bytes_per_s=2e10, attention_flops_per_s=1e11)


@pytest.fixture
def this_cpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What it is asked for; it has 3 threads and 8 GiB."""
    asked: list[tuple] = []

    def rates(*kind):
        asked.append(kind)
        return MeasuredRates(RATES, was_quiet=True)

    monkeypatch.setattr("batchllm.device.cpu_rates.cpu_rates", rates)
    monkeypatch.setattr("batchllm.device.measurements.cpu_name", lambda: "a CPU")
    monkeypatch.setattr("batchllm.device.cpu_share.default_num_threads", lambda num_cpus: 3)
    monkeypatch.setattr("batchllm.device.kv_cache.available_memory_bytes", lambda: 8 << 30)
    return asked


@pytest.mark.parametrize(
    ("dtype", "quantize", "kind", "precision"),
    [
        ("float32", None, (torch.float32, None, 3), "float32"),
        (torch.bfloat16, None, (torch.bfloat16, None, 3), "bfloat16"),
        ("float32", "int8", (torch.float32, "int8", 3), "int8"),
        ("auto", "int8", (torch.bfloat16, "int8", 3), "int8"),
    ],
)
def test_the_cpu_at_hand_is_what_it_was_measured_to_be(this_cpu, dtype, quantize, kind, precision):
    device = device_by_name("cpu", dtype, quantize)
    assert this_cpu == [kind]
    rates = "products 400 GFLOP/s, attention 100 GFLOP/s, weights 20.0 GB/s"
    assert device.name == f"a CPU, {precision}, threads: 3 (measured here: {rates})"
    assert (device.flops_per_s, device.bytes_per_s, device.memory_bytes) == (4e11, 2e10, 8 << 30)
    assert device.flops_per_s * device.attention_efficiency == 1e11
    assert device.dtype == str(kind[0]).removeprefix("torch.")
    assert device.linear_element_bytes == (1 if quantize else None)
    assert not device.reads_while_multiplying


@pytest.mark.parametrize("has_bf16", [True, False])
def test_without_a_dtype_it_is_the_one_that_a_model_would_run_in(this_cpu, monkeypatch, has_bf16):
    monkeypatch.setattr("batchllm.device.choice.cpu_has_bf16_dot", lambda: has_bf16)
    assert device_by_name("cpu", "auto", None).dtype == ("bfloat16" if has_bf16 else "float32")


def test_a_measurement_beside_others_says_so(this_cpu, monkeypatch):
    rates = lambda *kind: MeasuredRates(RATES, was_quiet=False)  # noqa: E731
    monkeypatch.setattr("batchllm.device.cpu_rates.cpu_rates", rates)
    assert "(measured here while others used it, and not kept: products" in device_by_name("cpu", "auto", None).name


def test_what_a_device_does_not_multiply_is_refused(this_cpu, monkeypatch):
    assert device_by_name("h200", "bfloat16", None) is DEVICES["h200"]
    with pytest.raises(ValueError, match=r"^quantize: 'int8' is for a CPU, and device is 'h100'$"):
        device_by_name("h100", "auto", "int8")
    with pytest.raises(ValueError, match=r"^dtype: expected 'auto' or 'bfloat16' for 'a100', got 'float32'$"):
        device_by_name("a100", "float32", None)
    monkeypatch.setattr("batchllm.device.choice.can_multiply_int8", lambda: False)
    with pytest.raises(ValueError, match=r"^quantize: 'int8' needs oneDNN"):
        device_by_name("cpu", "auto", "int8")
    assert this_cpu == []
