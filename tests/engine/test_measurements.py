"""Times in turns, and what measurements are kept under."""

import os

import pytest
import torch

from batchllm.device import measurements
from batchllm.device.cpu_share import CpuTime
from batchllm.device.measurements import Turns, keep, kept


def test_turns_go_on_until_enough_were_quiet(monkeypatch):
    waits = [0.5, 0.5, 0.0, 0.5, 0.0, 0.0]
    times = iter([3.0, 2.0, 1.0, 9.0, 0.5, 1.5])
    waited = iter(sum(waits[: (i + 1) // 2]) for i in range(100))  # before and after each turn
    monkeypatch.setattr(measurements, "seconds", lambda run: next(times))
    monkeypatch.setattr(CpuTime, "now", lambda: CpuTime(0.0, next(waited)))
    turns = Turns(num_quiet=3, limit_s=60)
    assert turns.best_s(lambda: None) == 0.5
    assert list(times) == []
    assert turns.were_quiet


def test_functions_take_turns(monkeypatch):
    times = iter([3.0, 1.0, 2.0, 5.0, 4.0, 2.0])
    monkeypatch.setattr(measurements, "seconds", lambda run: run() or next(times))
    monkeypatch.setattr(CpuTime, "now", lambda: CpuTime(0.0, 0.0))
    order: list[str] = []
    runs = (lambda: order.append("a")), (lambda: order.append("b"))
    assert Turns(num_quiet=3, limit_s=60).best_of_each_s(*runs, before=lambda: order.append("-")) == [2.0, 1.0]
    assert order == ["-", "a", "b"] * 3


def test_where_no_turn_was_quiet_time_ends_them(monkeypatch):
    waited = iter(range(10**9))
    monkeypatch.setattr(CpuTime, "now", lambda: CpuTime(0.0, float(next(waited))))
    turns = Turns(num_quiet=3, limit_s=0.01)
    assert turns.best_s(lambda: None) < 0.01
    assert not turns.were_quiet


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(measurements, "cpu_name", lambda: "another CPU"),
        lambda patch: patch.setattr(torch, "__version__", "99.0"),
        lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another"),
        lambda patch: patch.setitem(os.environ, "MKL_ENABLE_INSTRUCTIONS", "SSE4_2"),
    ],
    ids=["CPU", "torch", "instructions", "limit"],
)
def test_a_measurement_is_of_one_cpu_torch_and_setting(monkeypatch, tmp_path, change):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep("file", "what", {"a": 1.5})
    assert kept("file", "what", ["a"]) == {"a": 1.5}
    assert kept("file", "else", ["a"]) is None
    with monkeypatch.context() as patch:
        change(patch)
        assert kept("file", "what", ["a"]) is None
        keep("file", "what", {"a": 2.5})
    assert kept("file", "what", ["a"]) == {"a": 1.5}
