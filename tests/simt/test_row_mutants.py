"""The cases of test_row_kernels.cpp and test_norm_rotate_append.cpp fail where a kernel is wrong."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.simt.backend import build_directory
from tests.simt.mutants import QUICK_ROWS, ROW_MUTANTS, Mutant
from tests.simt.test_mutants import CHECKED_OPTIONS, ROOT


def run_cases(mutant: Mutant | None, build: str, directory: Path) -> subprocess.CompletedProcess:
    """The cases, built by `make test-cpp`, with a kernel that has one mistake."""
    if mutant is not None:
        source = (ROOT / mutant.file).read_text()
        assert source.count(mutant.original) == 1, f"{mutant}: stands {source.count(mutant.original)} times"
        header = directory / Path(mutant.file).relative_to("csrc")
        header.parent.mkdir(parents=True)
        header.write_text(source.replace(mutant.original, mutant.mutated))

    kernels, program = directory / "kernels.o", directory / "cases"
    options = ["-std=c++20", "-O1", "-g1", "-w", *(CHECKED_OPTIONS if build == "checked" else [])]
    includes = [f"-I{directory}", f"-I{ROOT / 'tests'}", f"-I{ROOT / 'csrc'}"]
    unit = ROOT / "tests" / "simt" / "row_kernels.cpp"
    subprocess.run(["c++", *options, *includes, "-c", unit, "-o", kernels], check=True)
    built = build_directory()
    objects = sorted((built / f"CMakeFiles/test_simt_rows_{build}.dir").glob("**/*.o"))
    libraries = [built / "libsimt_emulator.a", built.parents[1] / "libbatchllm_kernels.a", "-fopenmp", "-ldl"]
    subprocess.run(["c++", kernels, *objects, *libraries, "-o", program], check=True)
    return subprocess.run([program], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("build", ["fast", "checked"])
def test_a_kernel_without_a_mistake_passes(build: str, tmp_path: Path):
    done = run_cases(None, build, tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "mutant",
    [mutant if mutant in QUICK_ROWS else pytest.param(mutant, marks=pytest.mark.full) for mutant in ROW_MUTANTS],
    ids=str,
)
def test_a_mistake_is_caught(mutant: Mutant, tmp_path: Path):
    done = run_cases(mutant, mutant.build, tmp_path)
    assert done.returncode != 0
    assert "test cases:" in done.stdout, "a finding or a wrong number, no crash of the cases"
