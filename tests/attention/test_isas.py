"""Every instruction set that this machine has, by the same tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import batchllm_ext


def run_python(isa: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "BATCHLLM_ISA": isa, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


def test_the_kernel_in_use_is_the_last_of_the_list_unless_told():
    assert batchllm_ext.cpu_isas()[0] == "base"
    assert batchllm_ext.cpu_isa() == (os.environ.get("BATCHLLM_ISA") or batchllm_ext.cpu_isas()[-1])


@pytest.mark.parametrize("isa", [isa for isa in batchllm_ext.cpu_isas() if isa != batchllm_ext.cpu_isa()])
def test_other_instruction_sets_pass_the_same_tests(isa: str):
    named = run_python(isa, "-c", "import batchllm_ext; print(batchllm_ext.cpu_isa())")
    assert named.stdout.strip() == isa
    here = Path(__file__).parent
    of_rows = [str(here.parent / "rows" / name) for name in ("test_row_ops.py", "test_quantized_rows.py")]
    tests = [str(here / "test_attention.py"), *of_rows]
    result = run_python(isa, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests)
    assert result.returncode == 0, result.stdout[-4000:]


@pytest.mark.parametrize("isa", ["avx9000", "AVX2"])
def test_unknown_instruction_set_is_an_error_that_lists_those_there_are(isa: str):
    result = run_python(isa, "-c", "import batchllm_ext; batchllm_ext.cpu_isa()")
    assert result.returncode != 0
    expected = ", ".join(batchllm_ext.cpu_isas())
    assert f"ValueError: BATCHLLM_ISA: expected one of {expected} on this machine, got {isa}" in result.stderr
