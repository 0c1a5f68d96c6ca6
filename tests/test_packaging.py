"""What the package is called, and what a wheel of it holds."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

import batchllm
import batchllm_ext
from tests.engine import tiny
from tests.test_module import run_python

ROOT = Path(__file__).resolve().parent.parent
NAME = "batchllm-ext"  # of the distribution; "batchllm" is somebody else's
TEXTS = (".py", ".md", ".sh", ".yml", ".h")
STRANGERS = r"\bbatchllm\[\w|version\(['\"]batchllm['\"]|install '?\"?batchllm(?!-ext|_)\b"
GROUND_FLOOR = ["numpy"]  # all that batchllm_ext needs
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def test_the_version_stands_in_one_place() -> None:
    assert version(NAME) == batchllm.__version__
    own = re.escape(batchllm.__version__)
    for file in ("pyproject.toml", "setup.py", "CMakeLists.txt", "CITATION.cff"):
        assert not re.search(rf"\b{own}\b(?!\.)", (ROOT / file).read_text()), file


def test_nobody_is_told_to_install_a_strangers_package() -> None:
    paths = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml", "mkdocs.yml")]
    for folder in ("batchllm", "docs", "examples", "benchmarks", "csrc", ".github"):
        paths += [path for path in (ROOT / folder).rglob("*") if path.suffix in TEXTS]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert not re.search(STRANGERS, text), path


def test_extras_of_the_package_name_it() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    section = project.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    known = set(re.findall(r"^(\w+) = ", section, re.MULTILINE))
    assert {"cli", "plot", "data", "eval", "grammar", "docs", "test", "dev"} <= known
    for extras in re.findall(rf"{NAME}\[([\w,]+)\]", project):
        assert set(extras.split(",")) <= known


OF_EXTRAS = ("typer", "rich", "matplotlib", "pyarrow", "fsspec", "zstandard", "xgrammar")
WITHOUT = """
import sys

class Missing:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {packages}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing)
"""
LIBRARY = """
from batchllm import LLM, SamplingParams, run_job

llm = LLM("{folder}/model")
outputs = llm.generate(["Hello", "Hello you"], SamplingParams(max_tokens=3), use_tqdm=False)
run_job("{folder}/rows.jsonl", "{folder}/out.jsonl", llm, url="/v1/completions", log=lambda line: None)
print(len(outputs), len(open("{folder}/out.jsonl").readlines()))
"""
COMMAND = """
from batchllm.__main__ import main

try:
    main()
except SystemExit as end:
    print(end)
"""


def run_without(packages: tuple[str, ...], program: str) -> str:
    """What the program prints where these packages are not installed."""
    return run_python(WITHOUT.format(packages=packages) + program)


def test_the_library_needs_no_package_of_an_extra(tmp_path: Path) -> None:
    tiny.save(tiny.Family("Llama").model(), tmp_path / "model")
    tiny.save_tokenizer(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hello"}')
    assert run_without(OF_EXTRAS, LIBRARY.format(folder=tmp_path)) == "2 1\n"


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_the_command_without_its_packages_says_what_to_install(package: str) -> None:
    said = f"batchllm: the command line needs {package}: pip install 'batchllm-ext[cli]'\n"
    assert run_without((package,), COMMAND) == said


def test_a_program_in_cpp_is_built_with_the_planner_of_the_package(tmp_path: Path) -> None:
    assert (Path(batchllm.get_include()) / "batchllm" / "planner" / "batch_planner.h").exists()
    cmake = [sys.executable, "-m", "cmake"]
    ninja = Path(sys.executable).parent / "ninja"
    where = ["-S", str(ROOT / "examples" / "cpp"), "-B", str(tmp_path), "-G", "Ninja"]
    options = [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-Dbatchllm_DIR={batchllm.get_cmake_dir()}"]
    subprocess.run([*cmake, *where, *options], check=True)
    subprocess.run([*cmake, "--build", str(tmp_path)], check=True)
    run = subprocess.run([str(tmp_path / "plan_only")], check=True, capture_output=True, text=True)
    assert "1840 are computed" in run.stdout


def test_a_module_that_was_built_in_place_says_where_the_planner_would_be(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(batchllm_ext, "__file__", str(tmp_path / "batchllm_ext.so"))
    with pytest.raises(FileNotFoundError, match=rf"no C\+\+ package at {re.escape(str(tmp_path))}.*cmake --install"):
        batchllm.get_cmake_dir()


def test_the_module_needs_no_library_but_the_compilers() -> None:
    """Even built with CUDA, it loads without a driver."""
    shown = subprocess.run(["readelf", "-d", batchllm_ext.__file__], check=True, capture_output=True, text=True)
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", shown.stdout)
    assert "libc.so.6" in needed
    known = r"lib(gomp|stdc\+\+|gcc_s|m|c|pthread|dl|rt)\.so|ld-linux"
    assert [name for name in needed if not re.match(known, name)] == []


LIBGOMPS = "print(*{line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line})"


@pytest.mark.parametrize("modules", ["batchllm_ext, torch", "torch, batchllm_ext"])
def test_a_process_has_one_libgomp_whoever_comes_first(modules: str) -> None:
    assert len(run_python(f"import {modules}; {LIBGOMPS}").split()) == 1


def test_the_module_looks_for_libgomp_beside_torch() -> None:
    shown = subprocess.run(["readelf", "-d", batchllm_ext.__file__], check=True, capture_output=True, text=True)
    assert re.search(r"\((RUNPATH|RPATH)\).*\[\$ORIGIN/torch/lib\]", shown.stdout)


@pytest.mark.parametrize("isa", batchllm_ext.cpu_isas())
def test_the_module_loads_for_less_than_the_cpu_has(isa: str) -> None:
    assert run_python("import batchllm_ext; print(batchllm_ext.cpu_isa())", BATCHLLM_ISA=isa) == f"{isa}\n"


@pytest.mark.full
@pytest.mark.parametrize("python", PYTHONS)
def test_every_python_has_a_version_of_every_package(python: str, tmp_path: Path) -> None:
    required = [requirement for requirement in requires(NAME) or [] if "extra ==" not in requirement]
    options = ["--python-version", python, "--only-binary", ":all:", "--no-deps", "--target", str(tmp_path)]
    command = [sys.executable, "-m", "pip", "-q", "install", "--disable-pip-version-check", "--dry-run", *options]
    found = subprocess.run([*command, *required], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, so that both are complete, and without CUDA, like those to be published."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "builder")], check=True)
    python = str(folder / "builder" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "-q", "install", "--disable-pip-version-check", "build"], check=True)
    subprocess.run([python, "-m", "build", "--sdist", "-o", str(folder), str(ROOT)], check=True, capture_output=True)
    (source,) = folder.glob("*.tar.gz")
    build = [python, "-m", "pip", "-q", "wheel", "--no-deps", "-w", str(folder), str(source)]
    subprocess.run(build, check=True, env={**os.environ, "BATCHLLM_CUDA": "OFF"})
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.full
def test_a_wheel_brings_no_library_of_torch(wheel: Path) -> None:
    held = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in held if re.search(r"gomp|libtorch|libc10|libcuda", name)]
    assert "batchllm/cpp/lib/cmake/batchllm/batchllmConfig.cmake" in held
    shown = subprocess.run([sys.executable, "-m", "auditwheel", "show", str(wheel)], capture_output=True, text=True)
    assert "manylinux" in shown.stdout, shown


@pytest.mark.full
def test_pip_is_told_which_pythons_will_do(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as held:
        (metadata,) = (name for name in held.namelist() if name.endswith(".dist-info/METADATA"))
        (pythons,) = re.findall(r"^Requires-Python: (.*)$", held.read(metadata).decode(), re.MULTILINE)
    assert [python for python in ("3.9", *PYTHONS) if SpecifierSet(pythons).contains(python)] == PYTHONS


@pytest.mark.full
def test_a_wheel_runs_without_a_compiler(wheel: Path, smollm2: Path, tmp_path: Path) -> None:
    """The planner with NumPy alone, then the README's first program."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "clean")], check=True)
    python = tmp_path / "clean" / "bin" / "python"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(python), *arguments], capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""}, check=False
        )

    install = [str(python), "-I", "-m", "pip", "-q", "install", "--disable-pip-version-check"]
    subprocess.run([*install, *GROUND_FLOOR], check=True)
    subprocess.run([*install, "--no-deps", str(wheel)], check=True)
    assert "are computed" in run(str(ROOT / "examples" / "plan_only.py")).stdout
    subprocess.run([*install, "packaging"], check=True)
    missing = run("-c", "from batchllm import LLM").stderr.splitlines()[-1]
    assert missing == "ImportError: batchllm needs torch: pip install 'torch<2.14,>=2.6'"

    # The other packages are those of the tests, behind its own.
    (site_packages,) = (tmp_path / "clean" / "lib").glob("python*/site-packages")
    (site_packages / "shared.pth").write_text(sysconfig.get_path("purelib"))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2-135m-instruct").symlink_to(smollm2)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    shown = run("-c", f"{example}\nimport batchllm; print(batchllm.__file__)")
    assert shown.returncode == 0, shown.stderr
    *answers, figures, where = shown.stdout.splitlines()
    assert where.startswith(str(site_packages))
    assert answers[0].startswith("Where is Iceland? -> ")
    assert "computed" in figures
