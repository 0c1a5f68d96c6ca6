"""The command on a real, tiny model: its answers are transformers' answers."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from batchllm import LLM
from batchllm.cli import app
from batchllm.jobs.figures import read_figures
from batchllm.jobs.run import BatchFiles, JobInterrupted, RunOptions, run_batch_file
from batchllm.outputs import JobProgress
from tests.engine import tiny
from tests.jobs.batch_lines import chat_line, completion_line, read_records, write_lines


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tiny.save(tiny.FAMILIES["llama"].model(), tmp_path_factory.mktemp("llama") / "tiny-llama")
    tiny.save_tokenizer(directory)
    return directory


def run(model_dir: Path, lines: list[Any], folder: Path, *options: str) -> dict[str, Any]:
    """The answers' bodies by custom_id, and the summary under ""."""
    arguments = ["run", str(write_lines(folder / "in.jsonl", lines)), "-o", str(folder / "out.jsonl")]
    arguments += ["--model", str(model_dir), "--dtype", "float32", "--json-summary", str(folder / "summary.json")]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code in (0, 3), result.output
    bodies = {record["custom_id"]: record["response"]["body"] for record in read_records(folder / "out.jsonl")}
    return bodies | {"": json.loads((folder / "summary.json").read_text())}


def greedy_text(model_dir: Path, prompt: str, max_tokens: int) -> str:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=not prompt.startswith("<bos>"))
    output = model.generate(**ids, max_new_tokens=max_tokens, do_sample=False, pad_token_id=0)
    return str(tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


def test_answers_are_those_of_transformers(model_dir: Path, tmp_path: Path) -> None:
    document = "Once upon a time there was a tiny model. "
    lines = [
        *(chat_line(f"chat{i}", f"{document}{i}?", temperature=0, max_tokens=12) for i in range(4)),
        completion_line("texts", [f"{document}And so", document], temperature=0, max_tokens=9),
        b'{"custom_id": "torn", "method": "PO',
        completion_line("long", "x" * tiny.MAX_MODEL_LEN),
        chat_line("endless", " " * 10**6),  # refused by its characters
    ]
    answers = run(model_dir, lines, tmp_path)
    for i in range(4):
        expected = greedy_text(model_dir, f"<bos>user: {document}{i}?<end><bos>assistant: ", 12)
        assert answers[f"chat{i}"]["choices"][0]["message"]["content"] == expected
    texts = [choice["text"] for choice in answers["texts"]["choices"]]
    assert texts == [greedy_text(model_dir, prompt, 9) for prompt in (f"{document}And so", document)]

    summary = answers[""]
    assert (summary["num_answered"], summary["num_failed"]) == (5, 3)
    usage = [answers[name]["usage"] for name in answers if name]
    assert sum(u["prompt_tokens"] for u in usage) == summary["stats"]["prompt_tokens"]
    assert sum(u["completion_tokens"] for u in usage) == summary["stats"]["output_tokens"]
    saved = summary["stats"]["prompt_tokens"] - summary["stats"]["computed_prompt_tokens"]
    assert sum(u["prompt_tokens_details"]["cached_tokens"] for u in usage) == saved
    assert saved > 3 * len(document)
    errors = [record["error"] for record in read_records(tmp_path / "out.errors.jsonl")]
    assert [error["code"] for error in errors] == ["invalid_json_line", "invalid_prompt", "invalid_prompt"]
    assert "1,000,032 characters, and the model takes 512 tokens of at most 5" in errors[2]["message"]


def test_neither_order_nor_sharing_changes_an_answer(model_dir: Path, tmp_path: Path) -> None:
    lines = [
        *(chat_line(f"sampled{i}", "Tell me a story.", temperature=0.8, max_tokens=8) for i in range(3)),
        completion_line("several", ["Tell me", "Tell me a story."], n=2, top_k=20, max_tokens=8),
        completion_line("seeded", "Tell me", seed=4, max_tokens=8),
    ]
    choices = []
    orders = (lines, lines[::-1])
    for at, (order, levels) in enumerate(itertools.product(orders, ("auto", "0"))):
        folder = tmp_path / str(at)
        folder.mkdir()
        answers = run(model_dir, list(order), folder, "--levels", levels)
        choices.append({name: body["choices"] for name, body in answers.items() if name})
    assert all(other == choices[0] for other in choices[1:])
    contents = {choices[0][f"sampled{i}"][0]["message"]["content"] for i in range(3)}
    assert len(contents) == 3  # equal prompts, own seeds
    assert len({choice["text"] for choice in choices[0]["several"]}) == 4


def test_a_run_leaves_figures_metrics_and_a_page(model_dir: Path, tmp_path: Path) -> None:
    document = "Once upon a time there was a tiny model, which answered questions all day. "
    lines = [completion_line(str(i), f"{document}{i}?", max_tokens=4, ignore_eos=True) for i in range(5)]
    page, metrics = tmp_path / "page.html", tmp_path / "metrics"
    summary = run(model_dir, lines, tmp_path, "--report", str(page), "--metrics", str(metrics))[""]
    figures = read_figures(tmp_path / "out.figures.json")
    assert (figures.model, figures.input) == (model_dir.name, str(tmp_path / "in.jsonl"))
    assert figures.seconds == summary["stats"]["seconds"]
    assert sum(figures.timeline.prefill_tokens) == summary["stats"]["computed_prompt_tokens"]
    assert [(level.segments, level.max_readers) for level in figures.levels] == [(1, 5)]
    assert [(group.requests, group.prompt) for group in figures.groups] == [(5, 0)]
    assert "tokens saved" in page.read_text()
    assert 'batchllm_requests{state="finished"} 5\n' in metrics.read_text()
    again = CliRunner().invoke(app, ["report", str(tmp_path / "out.jsonl")])
    assert (again.exit_code, again.stderr) == (0, f"wrote {tmp_path / 'out.html'}\n")
    assert (tmp_path / "out.html").read_text() == page.read_text()


def test_a_job_that_is_stopped_leaves_figures_and_a_page_that_says_so(model_dir: Path, tmp_path: Path) -> None:
    lines = [completion_line(str(i), f"{i}?", max_tokens=2 + i, ignore_eos=True) for i in range(5)]
    files = BatchFiles(
        *(write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl"),
        figures=tmp_path / "out.figures.json",
    )

    def stop(progress: JobProgress) -> None:
        if progress.finished_requests == 2:
            raise KeyboardInterrupt

    options = RunOptions(model_name="m", chat_max_tokens=1)
    with pytest.raises(JobInterrupted):
        run_batch_file(files, lambda: LLM(model_dir), options, on_progress=stop)
    figures = read_figures(tmp_path / "out.figures.json")
    assert len(figures.timeline.steps) == figures.progress.steps > 0
    assert figures.seconds.keys() >= {"forward"}
    assert CliRunner().invoke(app, ["report", str(files.output)]).exit_code == 0
    assert "The job was stopped: 2 of 5 requests were finished." in (tmp_path / "out.html").read_text()


def test_answers_of_lines_with_a_grammar_are_of_it_and_a_bad_grammar_is_its_lines_error(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    response_format = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    lines = [
        chat_line("json", "?", response_format=response_format, max_tokens=200, temperature=0),
        completion_line("choice", "?", structured_outputs={"choice": ["yes", "no"]}, temperature=0),
        completion_line("bad", "?", structured_outputs={"regex": "(a"}),
    ]
    answers = run(model_dir, lines, tmp_path)
    assert type(json.loads(answers["json"]["choices"][0]["message"]["content"])["a"]) is int
    assert answers["choice"]["choices"][0]["text"] in ("yes", "no")
    [error] = read_records(tmp_path / "out.errors.jsonl")
    assert error["custom_id"] == "bad"
    assert error["error"]["message"].startswith("body: structured_outputs.regex: Regex parsing error at position 3")
