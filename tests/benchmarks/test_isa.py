"""What limits contestants to an older instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import batchllm_ext as ext
from benchmarks import isa

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = {name: value for name, value in os.environ.items() if name not in isa.LIMITS["avx2"]}
    monkeypatch.setattr(os, "environ", unlimited)


def test_processes_know_that_they_are_limited() -> None:
    assert isa.limited_to() is None
    os.environ["BATCHLLM_ISA"] = "avx2"
    assert isa.limited_to() is None, "the libraries are not"
    isa.limit("avx2")
    assert isa.limited_to() == "avx2"


@pytest.mark.skipif("avx2" not in ext.cpu_isas(), reason="the CPU has no AVX2")
def test_kernels_and_torch_are_limited() -> None:
    isa.limit("avx2")
    code = "import batchllm_ext as e, torch; print(e.cpu_isa(), torch.backends.cpu.get_cpu_capability())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["avx2", "AVX2"]
