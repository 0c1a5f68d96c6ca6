"""Each named bug is put into a copy of its source, where its test fails; without it the test passes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import batchllm_ext
from tests.mutants.mutants import (
    ATTENTION_MUTANTS,
    AVX2_ROWS,
    PLANNER,
    PLANNER_MUTANTS,
    PYTHON_MUTANTS,
    ROW_MUTANTS,
    Mutant,
)

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "cpp"  # of `make test-cpp`
MUTANTS = [*PLANNER_MUTANTS, *ROW_MUTANTS, *ATTENTION_MUTANTS, *PYTHON_MUTANTS]
# Those that this machine runs.
KERNEL_MUTANTS = [
    mutant
    for mutant in (*ROW_MUTANTS, *ATTENTION_MUTANTS)
    if mutant.unit != AVX2_ROWS or "avx2" in batchllm_ext.cpu_isas()
]
AVX2_FLAGS = ["-mavx2", "-mfma", "-DBATCHLLM_X86_KERNELS"]  # as CMakeLists.txt has them
TIMEOUT_S = 120


def mutated(mutant: Mutant) -> str:
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.original) == 1, f"{mutant}: stands {text.count(mutant.original)} times in {mutant.file}"
    return text.replace(mutant.original, mutant.mutated)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_table_is_of_the_code_as_it_stands(mutant: Mutant) -> None:
    text = mutated(mutant)
    if mutant in PYTHON_MUTANTS:
        compile(text, mutant.file, "exec")
        file, _, name = mutant.test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text()
    else:
        room = Path(mutant.file).parts[1]
        cases = "".join(path.read_text() for path in sorted((ROOT / "tests" / room).glob("*.cpp")))
        name, _, of_type = mutant.test.partition("<")
        assert f'TEST_CASE{"_TEMPLATE" if of_type else ""}("{name}"' in cases
        assert (mutant.unit or mutant.file).endswith(".cpp")
    assert [str(other) for other in MUTANTS].count(str(mutant)) == 1


# Python: the repository by links, but for its package, which is a copy.


def run_tests(
    tests: list[str], mutant: Mutant | None, directory: Path, timeout_s: float = TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    for path in ROOT.iterdir():
        if path.name not in ("batchllm", "build") and not path.name.startswith("."):
            (directory / path.name).symlink_to(path)
    shutil.copytree(ROOT / "batchllm", directory / "batchllm", ignore=shutil.ignore_patterns("__pycache__"))
    if mutant is not None:
        (directory / mutant.file).write_text(mutated(mutant))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", "-p", "no:cacheprovider", *tests]
    # The directory stands first on the path of `python -m`.
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=timeout_s)


@pytest.mark.full
def test_python_without_a_bug_passes(tmp_path: Path) -> None:
    done = run_tests(sorted({mutant.test for mutant in PYTHON_MUTANTS}), None, tmp_path, timeout_s=5 * TIMEOUT_S)
    assert done.returncode == 0, done.stdout


@pytest.mark.full
@pytest.mark.parametrize("mutant", PYTHON_MUTANTS, ids=str)
def test_a_bug_in_python_turns_its_test_red(mutant: Mutant, tmp_path: Path) -> None:
    done = run_tests([mutant.test], mutant, tmp_path)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert re.search(r"^FAILED ", done.stdout, re.MULTILINE), f"a test, and not what it stands on: {done.stdout}"


# C++: one source compiled anew, and linked before the library that has it and the other tests.


def run_case(case: str, unit: str, mutant: Mutant | None, directory: Path) -> subprocess.CompletedProcess[str]:
    is_kernel = unit.startswith(("csrc/rows/", "csrc/attention/"))
    library = BUILD / ("libbatchllm_kernels.a" if is_kernel else "libbatchllm_planner.a")
    program_of_tests = "test_attention" if is_kernel else "test_planner"
    if not library.exists():
        pytest.fail(f"{BUILD} is missing: run `make test-cpp` (or `make test-full`)")
    source = ROOT / unit
    if mutant is not None:
        copy = directory / Path(mutant.file).relative_to("csrc")
        copy.parent.mkdir(parents=True)
        copy.write_text(mutated(mutant))
        source = source if mutant.unit else copy
    doctest = re.search(r"^DOCTEST_INCLUDE_DIR:PATH=(.*)$", (BUILD / "CMakeCache.txt").read_text(), re.MULTILINE)
    assert doctest is not None
    includes = [f"-I{directory}", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests'}", f"-I{doctest[1]}"]
    compiled, program = directory / "unit.o", directory / "cases"
    # As the build of `make test-cpp`, without assertions: the tests themselves must see it.
    flags = ["-std=c++20", "-O1", "-DNDEBUG", "-w", *(AVX2_FLAGS if unit == AVX2_ROWS else [])]
    subprocess.run(["c++", *flags, *includes, "-c", source, "-o", compiled], check=True)
    tests = (BUILD / "tests" / "CMakeFiles" / f"{program_of_tests}.dir").glob("**/*.o")
    others = sorted(path for path in tests if path.stem != Path(unit).name)
    subprocess.run(["c++", compiled, *others, library, "-pthread", "-fopenmp", "-o", program], check=True)
    only = f"--test-case={case}".replace(",", "\\,")
    command = [program, only, "--abort-after=1"]
    environment = {**os.environ, "BATCHLLM_ISA": "base"}  # where a test asks for the kernels in use
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.mark.full
@pytest.mark.parametrize(
    ("case", "unit"),
    sorted({(mutant.test, PLANNER) for mutant in PLANNER_MUTANTS} | {(m.test, m.unit) for m in KERNEL_MUTANTS}),
)
def test_a_source_without_a_bug_passes(case: str, unit: str, tmp_path: Path) -> None:
    done = run_case(case, unit, None, tmp_path)
    assert done.returncode == 0, done.stdout
    assert re.search(r"test cases: +1 \| +1 passed", done.stdout), done.stdout


@pytest.mark.full
@pytest.mark.parametrize("mutant", [*PLANNER_MUTANTS, *KERNEL_MUTANTS], ids=str)
def test_a_bug_in_a_source_turns_its_case_red(mutant: Mutant, tmp_path: Path) -> None:
    done = run_case(mutant.test, mutant.unit or mutant.file, mutant, tmp_path)
    assert done.returncode != 0, done.stdout
    assert re.search(r"test cases: +1 \| +0 passed \| +1 failed", done.stdout), done.stdout  # by a check, or a crash
