"""Whatever takes a model takes a GGUF file."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from batchllm.cli import app
from batchllm.jobs.manifest import fingerprint_model
from tests.engine import tiny
from tests.engine.gguf_models import write_gguf
from tests.jobs.batch_lines import chat_line, completion_line, read_records, write_lines

LINES = [
    *(chat_line(f"chat{i}", f"A shared document, question {i}", temperature=0, max_tokens=8) for i in range(3)),
    completion_line("text", "A document", temperature=0, max_tokens=5),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A directory, and a GGUF file of the same weights and tokenizer."""
    folder, model = tmp_path_factory.mktemp("models"), tiny.FAMILIES["llama"].model()
    tiny.save_tokenizer(tiny.save(model, folder / "tiny"))
    write_gguf(folder / "tiny.gguf", model)
    return folder / "tiny", folder / "tiny.gguf"


def call(*arguments: Any) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_run_answers_and_plan_plans_as_with_a_directory(models, tmp_path):
    in_jsonl, answers, plans = write_lines(tmp_path / "in.jsonl", LINES), [], []
    for place, model in enumerate(models):
        out, plan = tmp_path / f"out{place}.jsonl", tmp_path / f"plan{place}.json"
        call("run", in_jsonl, "-o", out, "--model", model, "--dtype", "float32")
        records = {record["custom_id"]: record["response"]["body"] for record in read_records(out)}
        answers.append({custom_id: (body["choices"], body["usage"]) for custom_id, body in records.items()})
        call("plan", in_jsonl, "--model", model, "--kv-cache-tokens", 400, "--json", plan)
        plans.append(json.loads(plan.read_text()))
    assert answers[0] == answers[1]
    assert len(answers[0]) == len(LINES)
    assert plans[1].pop("model") == models[1].name
    assert plans[0].pop("model") == models[0].name
    assert plans[0]["prompt_tokens"] == plans[1]["prompt_tokens"]


def test_a_job_knows_its_gguf_file_again(models, tmp_path):
    in_jsonl = write_lines(tmp_path / "in.jsonl", LINES)
    options = ["run", in_jsonl, "-o", tmp_path / "out.jsonl", "--model", models[1], "--dtype", "float32", "--resume"]
    call(*options)
    assert read_records(tmp_path / "out.jsonl")
    call(*options)
    before = fingerprint_model(models[1])
    assert list(before) == [f"model {models[1].name}"]
    write_gguf(other := tmp_path / models[1].name, tiny.FAMILIES["llama"].model(seed=1))
    assert fingerprint_model(other).keys() == before.keys()
    assert fingerprint_model(other) != before


def test_the_output_is_not_a_part_of_the_model(tmp_path):
    write_gguf(tmp_path / "tiny", tiny.FAMILIES["llama"].model(), max_tensors_per_file=11)
    first, second = sorted(tmp_path.glob("*.gguf"))
    in_jsonl = write_lines(tmp_path / "in.jsonl", LINES)
    arguments = ["run", in_jsonl, "-o", second, "--model", first, "--overwrite"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    assert "is the model file" in result.stderr
