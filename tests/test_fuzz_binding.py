"""Random calls into the module, in a separate process: an unexpected end names its seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import batchllm_ext as ext
from tests.test_module import ROOT


def fuzz(seconds: float) -> dict[str, list[int]]:
    """How often each public name returned and refused."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join([ROOT, *sys.path])}
    command = [sys.executable, "-m", "tests.fuzz_binding", str(seconds)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds + 200)
    assert result.returncode == 0, f"{result.stdout.splitlines()[-1]} ended with {result.returncode}: {result.stderr}"
    return json.loads(result.stdout.splitlines()[-1])


def test_no_random_call_ends_the_process() -> None:
    fuzz(2)


@pytest.mark.full
def test_no_random_call_ends_the_process_for_as_long_as_one_likes() -> None:
    """BATCHLLM_FUZZ_SECONDS, 60 unless given."""
    outcomes = fuzz(float(os.environ.get("BATCHLLM_FUZZ_SECONDS", "60")))
    assert outcomes.keys() == {name for name in vars(ext) if not name.startswith("_")}
    assert [name for name, (returned, _) in outcomes.items() if returned == 0] == ["DevicePlan"]  # which needs a GPU
