"""What a CPU is measured to do."""

import json
from collections.abc import Iterator

import pytest
import torch

from batchllm.device import cpu_rates, measurements
from batchllm.device.cpu_rates import CpuRates, MeasuredRates, measure_rates
from batchllm.device.int8 import can_multiply_int8

RATES = CpuRates(product_flops_per_s=4e11, weight_bytes_per_s=2e10, attention_flops_per_s=3e11)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path) -> list[tuple]:
    """What is measured from now on, with an empty cache; all of it quiet."""
    asked: list[tuple] = []

    def measure(dtype, quantize, num_threads):
        asked.append((dtype, quantize, num_threads))
        return MeasuredRates(RATES, was_quiet=True)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cpu_rates, "measure_rates", measure)
    return asked


def test_a_precision_is_measured_once(measured):
    kinds = [
        (torch.bfloat16, None, 2),
        (torch.float32, None, 2),
        (torch.bfloat16, "int8", 2),
        (torch.bfloat16, None, 1),
    ]
    for _ in range(2):
        for kind in kinds:
            assert cpu_rates.cpu_rates(*kind) == MeasuredRates(RATES, was_quiet=True)
    assert measured == kinds


def test_a_limit_of_instructions_is_another_machine(measured, monkeypatch):
    cpu_rates.cpu_rates(torch.float32, None, 2)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    cpu_rates.cpu_rates(torch.float32, None, 2)
    monkeypatch.setattr("batchllm_ext.cpu_isa", lambda: "another")
    cpu_rates.cpu_rates(torch.float32, None, 2)
    assert len(measured) == 3


@pytest.mark.parametrize("content", ["", "[]", '{"KEY": {"product_flops_per_s": 1}}', '{"KEY": 7}'])
def test_a_file_that_is_not_ours_is_measured_anew(measured, content):
    cpu_rates.cpu_rates(torch.float32, None, 2)
    file = measurements.cache_file(cpu_rates.FILE)
    (key,) = json.loads(file.read_text())
    file.write_text(content.replace("KEY", key))
    assert cpu_rates.cpu_rates(torch.float32, None, 2).rates == RATES
    assert len(measured) == 2


def test_what_others_left_of_a_cpu_is_not_kept_and_no_less_than_one_thread_has(measured, monkeypatch):
    disturbed = CpuRates(product_flops_per_s=5e11, weight_bytes_per_s=1e6, attention_flops_per_s=1e6)

    def measure(dtype, quantize, num_threads):
        measured.append(num_threads)
        return MeasuredRates(RATES if num_threads == 1 else disturbed, was_quiet=num_threads == 1)

    monkeypatch.setattr(cpu_rates, "measure_rates", measure)
    for _ in range(2):
        found = cpu_rates.cpu_rates(torch.float32, None, 8)
        assert found == MeasuredRates(CpuRates(5e11, 2e10, 3e11), was_quiet=False)
    assert measured == [8, 1, 8, 1]


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cpu_rates, "QUIET_TURNS", 2)
    monkeypatch.setattr(cpu_rates, "LIMIT_S", 0.05)
    monkeypatch.setattr(cpu_rates, "SIZE", 64)
    monkeypatch.setattr(cpu_rates, "CACHE_BYTES", 1 << 20)
    num_threads = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == num_threads


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_precision_can_be_measured(short_turns, monkeypatch, tmp_path, dtype, quantize):
    if quantize and not can_multiply_int8():
        pytest.fail("torch is without oneDNN's products of 8 bits")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rates = measure_rates(dtype, quantize, num_threads=1).rates
    assert min(vars(rates).values()) > 0
