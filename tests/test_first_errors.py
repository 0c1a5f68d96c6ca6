"""What people meet first, before anything runs: one sentence each, which names what is missing and what to do."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from batchllm import LLM, dependencies
from batchllm.dependencies import check_dependencies
from batchllm.jobs.spool import PromptSpool
from tests.engine import tiny
from tests.jobs.batch_lines import completion_line, read_records, write_lines

ROOT = Path(__file__).resolve().parent.parent
NUM_LINES = 40
GIB = 1 << 30
OUT_OF_MEMORY = "batchllm: out of memory; --kv-cache-tokens and --max-batch-tokens bound it"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tiny.save(tiny.FAMILIES["llama"].model(), tmp_path_factory.mktemp("models") / "tiny")
    tiny.save_tokenizer(directory)
    return directory


@pytest.fixture
def in_jsonl(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", [completion_line(f"{i:03}") for i in range(NUM_LINES)])


def batchllm(*args: object, limits: str = "", **environment: str) -> tuple[int, str]:
    """The exit status, and what it said last. limits: commands of a shell before it, as "ulimit -f 4"."""
    command = f'{limits}\nexec "$@"'
    done = subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, "-m", "batchllm", *map(str, args)],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


def test_no_compiler(tmp_path: Path) -> None:
    done = subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja", "-DBATCHLLM_PYTHON=OFF", "-DBATCHLLM_CUDA=OFF"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "CXX": "/nowhere/c++", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode != 0
    said = "a C++20 compiler is needed: install one (Debian: apt install g++), or name it in CXX"
    assert said in " ".join(done.stderr.split())


def test_make_with_a_python_that_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text(f"#!{sys.executable}\nimport sys\nsys.version_info = (3, 9, 18)\nexec(sys.argv[2])\n")
    old.chmod(0o755)
    for path in ROOT.iterdir():
        if path.name != ".venv":
            (tmp_path / path.name).symlink_to(path)
    command = ["make", "-C", str(tmp_path), f"PYTHON={old}", ".venv/installed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"BatchLLM needs Python 3.10 or later, and {old} is 3.9: make PYTHON=python3.12" in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.fixture
def required(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the installed distribution says that it needs."""
    requirements: list[str] = []
    monkeypatch.setattr(dependencies, "requires", lambda distribution: requirements)
    check_dependencies.cache_clear()
    yield requirements
    check_dependencies.cache_clear()


def test_a_package_that_is_missing(required: list[str]) -> None:
    required += ["numpy>=1.26", "no-such-torch>=2.6,<2.14"]
    with pytest.raises(ImportError) as error:
        check_dependencies()
    assert str(error.value) == "batchllm needs no-such-torch: pip install 'no-such-torch<2.14,>=2.6'"


def test_a_package_that_is_too_old(required: list[str]) -> None:
    required += ["torch>=99"]
    found = version("torch")
    with pytest.raises(ImportError) as error:
        check_dependencies()
    assert str(error.value) == f"batchllm needs torch>=99, found torch {found}: pip install 'torch>=99'"


def test_newer_packages_and_those_of_extras_are_let_through(required: list[str]) -> None:
    required += ["torch>=2,<2.1", "numpy", 'no-such-typer>=1; extra == "cli"', 'tomli>=99; python_version < "3.0"']
    check_dependencies()


def test_every_way_in_asks_for_the_packages(required: list[str], model: Path) -> None:
    from typer.testing import CliRunner

    import batchllm as package
    from batchllm.cli import app

    required += ["torch>=99"]
    with pytest.raises(ImportError, match=r"^batchllm needs torch>=99"):
        _ = package.LLM
    result = CliRunner().invoke(app, ["run", "in", "-o", "out", "--model", str(model)])
    assert result.exit_code == 1
    assert result.stderr.startswith("batchllm: batchllm needs torch>=99, found torch ")


def test_a_disk_that_is_full_under_the_answers(in_jsonl: Path, model: Path) -> None:
    out = in_jsonl.with_name("out.jsonl")
    command = ["run", in_jsonl, "-o", out, "--model", model, "--resume"]
    status, said = batchllm(*command, limits="ulimit -f 8")
    num_answered = len(read_records(out))
    assert status == 1
    assert 0 < num_answered < NUM_LINES
    assert said == (
        f"batchllm: output '{out}': File too large; the {num_answered} lines before are whole; "
        f"the answers so far are in {out}; --resume goes on"
    )
    assert batchllm(*command)[0] == 0
    assert len(read_records(out)) == NUM_LINES


def test_a_disk_that_is_full_under_a_temporary_file(in_jsonl: Path, model: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "temporary").mkdir()
    options = ["-o", in_jsonl.with_name("out.jsonl"), "--model", model]
    status, said = batchllm("run", "-", *options, limits=f"ulimit -f 1; exec < {in_jsonl}", TMPDIR=str(folder))
    assert status == 1
    assert said == (
        f"batchllm: input '-', of which {folder} holds a copy: File too large; TMPDIR names another directory"
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    spool = PromptSpool(spool_bytes=1000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=r"^token ids of the prompts, of which .*: File too large; TMPDIR names"):
            spool.append(range(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_pool_that_is_larger_than_the_memory(model: Path, in_jsonl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = in_jsonl.with_name("out.jsonl")
    status, said = batchllm("run", in_jsonl, "-o", out, "--model", model, "--kv-cache-tokens", 2**31 - 1)
    assert status == 1
    assert said.startswith(
        "batchllm: out of memory; --kv-cache-tokens and --max-batch-tokens bound it: kv_cache_tokens"
    )
    assert not out.exists()
    monkeypatch.setattr("batchllm.device.kv_cache.available_memory_bytes", lambda: GIB)
    tokens = GIB // 256
    with pytest.raises(MemoryError, match=rf"a pool of {2 * tokens} tokens needs 2.0 GiB, and 1.0 GiB .* {tokens}$"):
        LLM(model, dtype="float32", kv_cache_tokens=2 * tokens)
    LLM(model, dtype="float32", kv_cache_tokens=tokens)


def test_a_process_without_memory_to_load_the_model(in_jsonl: Path, model: Path) -> None:
    out = in_jsonl.with_name("out.jsonl")
    options = ["--kv-cache-tokens", 2**26]  # 8 GiB, which the machine may have
    status, said = batchllm("run", in_jsonl, "-o", out, "--model", model, *options, limits="ulimit -v 6000000")
    assert status == 1
    assert said.startswith(f"{OUT_OF_MEMORY}: ")


def test_a_hub_that_is_out_of_reach(in_jsonl: Path, tmp_path: Path) -> None:
    out = in_jsonl.with_name("out.jsonl")
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    status, said = batchllm("run", in_jsonl, "-o", out, "--model", "org/name", **nobody)
    assert status == 1
    assert said.startswith(
        "batchllm: model 'org/name': no such directory, and fetching it from the Hugging Face hub failed; give a "
        "directory with config.json, a tokenizer and safetensors ("
    )


def test_a_model_that_nothing_here_runs(in_jsonl: Path, tmp_path: Path) -> None:
    (directory := tmp_path / "t5").mkdir()
    (directory / "config.json").write_text(json.dumps({"architectures": ["T5ForConditionalGeneration"]}))
    status, said = batchllm("run", in_jsonl, "-o", in_jsonl.with_name("out.jsonl"), "--model", directory)
    assert status == 1
    assert said.startswith(
        f"batchllm: {directory / 'config.json'}: architecture T5ForConditionalGeneration does not run"
    )
    assert said.endswith("; docs/guide/models.md lists what runs")
