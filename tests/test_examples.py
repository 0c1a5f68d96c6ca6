"""Every example runs, and is as short as an example should be."""

import runpy
import sys
from pathlib import Path

import pytest

from tests.engine import tiny

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
# What makes other files, and shows what the demo answered.
TOOLS = {"fetch_model.py", "make_documents.py", "show_answers.py"}
# What tests in that folder of tests/integrations run, in an environment of their own.
APART = {
    "daft_column.py": "daft",
    "datatrove_job.py": "datatrove",
    "evaluate.py": "lm_eval",
    "jax_attention.py": "jax",
    "ray_documents.py": "ray",
    "vllm_job.py": "vllm",
}
MAX_LINES = 40
PRINTED = {
    "questions.py": "of which",
    "vote.py": "->",
    "classify.py": "%)",
    "extract.py": "born",
    "synthesise.py": "a riddle",
    "judge.py": "%)",
    "rollouts.py": "advantage",
    "plan_only.py": "are computed",
    "flashinfer_cascade.py": "layer 1 ->",
    "model_in_memory.py": "sdpa attention",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    tiny.save(tiny.Family("Llama", {"max_position_embeddings": 8192}).model(), directory)
    tiny.save_tokenizer(directory)
    return directory


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} - TOOLS == {*PRINTED, *APART}
    for name, folder in APART.items():
        tests = (EXAMPLES.parent / "tests" / "integrations" / folder).glob("test_*.py")
        assert any(name in path.read_text() for path in tests), name


@pytest.mark.parametrize("name", [*PRINTED, *APART])
def test_an_example_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_runs(
    name: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, str(model)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert PRINTED[name] in capsys.readouterr().out
