"""DataTrove's own inference asks for one document at a time; between its writer and its reader a job stands whole."""

import inspect
import json
import runpy
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.inference.servers.base import InferenceServer
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from batchllm import run_job
from tests.engine import tiny

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "datatrove_job.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    tiny.save(tiny.FAMILIES["llama"].model(), directory)
    tiny.save_tokenizer(directory)
    return directory


def run_example(model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, str(model), str(out)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")


def test_a_server_of_its_own_inference_gets_one_payload_at_a_time():
    assert list(inspect.signature(InferenceServer.make_request).parameters) == ["self", "payload"]


def test_the_example_reads_an_answer_for_every_document(model, tmp_path, monkeypatch, capsys):
    run_example(model, tmp_path, monkeypatch)
    lines = (tmp_path / "job" / "00000.jsonl").read_text().splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == ["iceland", "bhutan"]
    answers = pq.read_table(tmp_path / "answers" / "answers.parquet")
    assert sorted(answers["custom_id"].to_pylist()) == ["bhutan", "iceland"]
    printed = capsys.readouterr().out
    assert "iceland -> " in printed
    assert "bhutan -> " in printed


def test_run_again_the_example_goes_on_with_what_is_left(model, tmp_path, monkeypatch, capsys):
    run_example(model, tmp_path, monkeypatch)
    before = pq.read_table(tmp_path / "answers" / "answers.parquet")
    run_example(model, tmp_path, monkeypatch)
    assert capsys.readouterr().out.count("loading ") == 1  # the second time there is nothing to load a model for
    assert pq.read_table(tmp_path / "answers" / "answers.parquet") == before


def test_lines_of_a_batch_file_pass_through_both_ways(model, tmp_path):
    """Documents as requests in OpenAI's format; what comes back becomes documents again."""

    def request(self: JsonlWriter, document: Document) -> dict:
        body = {
            "prompt": document.text,
            "max_tokens": document.metadata["max_tokens"],
            "temperature": 0,
            "ignore_eos": True,
        }
        return {"custom_id": document.id, "method": "POST", "url": "/v1/completions", "body": body}

    def answer(self: JsonlReader, line: dict, path: str, id_in_file: int) -> dict:
        body = line["response"]["body"]
        return {"id": line["custom_id"], "text": body["choices"][0]["text"], "metadata": {"usage": body["usage"]}}

    shared = "One system prompt for all. "
    documents = [Document(text=f"{shared}Question {i}", id=f"q{i}", metadata={"max_tokens": 1 + i}) for i in range(5)]
    write = JsonlWriter(str(tmp_path / "job"), output_filename="${rank}.jsonl", compression=None, adapter=request)
    LocalPipelineExecutor([documents, write], logging_dir=str(tmp_path / "logs")).run()
    (tmp_path / "answers").mkdir()
    summary = run_job(tmp_path / "job" / "00000.jsonl", tmp_path / "answers" / "answers.jsonl", model, device="cpu")
    assert (summary.num_answered, summary.num_failed) == (5, 0)
    assert summary.stats["computed_prompt_tokens"] < summary.stats["prompt_tokens"] - 4 * len(shared) + 5
    read = {d.id: d for d in JsonlReader(str(tmp_path / "answers"), glob_pattern="answers.jsonl", adapter=answer)()}
    usage = {name: document.metadata["usage"]["completion_tokens"] for name, document in read.items()}
    assert usage == {f"q{i}": 1 + i for i in range(5)}
