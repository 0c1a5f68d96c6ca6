"""What the package is called, and what a wheel of it holds."""

import re
import subprocess
import sys
import zipfile
from importlib.metadata import metadata, version
from pathlib import Path

import pytest

import batchllm

ROOT = Path(__file__).resolve().parent.parent
NAME = "batchllm-ext"  # of the distribution; "batchllm" is somebody else's
TEXTS = (".py", ".md", ".sh", ".yml", ".h")
STRANGERS = r"\bbatchllm\[\w|version\(['\"]batchllm['\"]|install '?\"?batchllm(?!-ext|_)\b"
GROUND_FLOOR = ["numpy"]  # all that batchllm_ext needs


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
    known = set(metadata(NAME).get_all("Provides-Extra"))
    assert {"data", "grammar", "docs", "test", "dev"} <= known
    for extra in re.findall(rf"{NAME}\[(\w+)\]", (ROOT / "pyproject.toml").read_text()):
        assert extra in known


@pytest.mark.full
def test_a_wheel_brings_no_library_of_torch_and_runs_without_a_compiler(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in held if re.search(r"gomp|libtorch|libc10", name)]
    shown = subprocess.run([sys.executable, "-m", "auditwheel", "show", str(wheel)], capture_output=True, text=True)
    assert "manylinux" in shown.stdout, shown
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "clean")], check=True)
    python = tmp_path / "clean" / "bin" / "python"
    install = [str(python), "-m", "pip", "-q", "install", "--disable-pip-version-check"]
    subprocess.run([*install, *GROUND_FLOOR], check=True)
    subprocess.run([*install, "--no-deps", str(wheel)], check=True)
    run = subprocess.run(
        [str(python), str(ROOT / "examples" / "plan_only.py")],
        check=True, capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""},
    )  # fmt: skip
    assert "are computed" in run.stdout
