"""Scored lines have the results of LLM.score, both among answered lines and by their own command."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from batchllm import LLM, run_job
from batchllm.cli import app
from batchllm.continuations import perplexity
from batchllm.jobs.line import SCORE, ContinuedPrompt, LineError
from batchllm.jobs.openai_batch import parse_line
from batchllm.jobs.read_answers import Answers
from tests.engine import tiny
from tests.jobs.batch_lines import (
    chat_line,
    completion_line,
    perplexity_line,
    read_records,
    score_line,
    write_lines,
)
from tests.jobs.test_end_to_end import model_dir, run

__all__ = ["model_dir"]  # a fixture

DOCUMENT = "Once upon a time there was a tiny model. "


def parse(line: dict[str, Any]) -> Any:
    return parse_line(json.dumps(line).encode(), 7, {}, chat_max_tokens=99)


def test_scores_are_those_of_llm_score(model_dir: Path, tmp_path: Path) -> None:
    llm = LLM(model_dir, dtype="float32")
    jobs = {
        "letters": (f"{DOCUMENT}Was it? ", ["A", "B", "C", "D"]),
        "texts": (DOCUMENT, ["It was.", "It", "It was not.", "It"]),
        "ids": ([5, 6, 7], [[8], [9, 10], [8, 11, 12]]),
        "one": ("x", ["y"]),
    }
    lines: list[Any] = [score_line(name, *job) for name, job in jobs.items()]
    lines += [chat_line("chat", DOCUMENT, max_tokens=2), completion_line("text", DOCUMENT, max_tokens=2)]
    answers = run(model_dir, lines, tmp_path)
    assert answers[""]["num_answered"] == len(lines)
    for name, (prompt, continuations) in jobs.items():
        body = answers[name]
        assert (body["object"], body["usage"]["completion_tokens"]) == ("score", 0)
        (scores,) = llm.score([prompt], [continuations])
        (choice,) = llm.choose([prompt], [continuations])
        assert [score["index"] for score in body["scores"]] == list(range(len(continuations)))
        for given, expected, probability in zip(body["scores"], scores, choice.probabilities, strict=True):
            assert given["token_logprobs"] == pytest.approx(expected.logprobs, abs=1e-5)
            assert given["logprob"] == pytest.approx(expected.logprob, abs=1e-4)
            assert given["is_greedy"] == expected.is_greedy
            assert given["probability"] == pytest.approx(probability, abs=1e-4)
            assert len(given["tokens"]) == len(expected.token_ids)
    assert [score["tokens"] for score in answers["letters"]["scores"]] == [["A"], ["B"], ["C"], ["D"]]


def test_a_line_is_read_as_its_prompt_with_each_continuation() -> None:
    request = parse(score_line("a", "x", ["y", [5]], model="m", user="u"))
    assert (request.kind, request.prompts) == (SCORE, [ContinuedPrompt("x", "y"), ContinuedPrompt("x", [5])])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (score_line("a", "x", []), "body.continuations: expected at least one"),
        (score_line("a", "x", None), "body.continuations: expected `array`, got `null`"),
        (score_line("a", "x", "y"), "body.continuations: expected `array`, got `str`"),
        (score_line("a", "x", ["y", 5]), "body.continuations[1]: expected `str | array`, got `int`"),
        (score_line("a", None, ["y"]), "body.prompt: expected `str | array`, got `null`"),
        (score_line("a", "x", ["y"], temperature=0), "body.temperature: not supported, got 0"),
        (score_line("a", "x", ["y"], max_tokens=5), "body.max_tokens: not supported, got 5"),
        (completion_line("a", "x", continuations=["y"]), 'body.continuations: not supported, got ["y"]'),
    ],
)
def test_what_cannot_be_scored_is_refused_by_place(line: dict[str, Any], message: str) -> None:
    with pytest.raises(LineError) as caught:
        parse(line)
    assert str(caught.value) == message


def test_a_line_that_cannot_be_scored_is_named_and_ends_nothing(model_dir: Path, tmp_path: Path) -> None:
    lines = [
        score_line("empty", "x", ["y", ""]),
        score_line("unknown", [5], [[6], [7, 260]]),
        score_line("mixed", [5], ["y"]),
        score_line("good", "x", ["y"]),
    ]
    answers = run(model_dir, lines, tmp_path)
    assert answers.keys() == {"good", ""}
    errors = {record["custom_id"]: record["error"] for record in read_records(tmp_path / "out.errors.jsonl")}
    assert errors["empty"]["message"].endswith("continuation 1: expected at least one token after the prompt")
    assert "continuation 1: logprob_token_ids: 260, but the vocabulary has 260 tokens" in errors["unknown"]["message"]
    assert errors["mixed"]["message"].endswith("expected token ids after a prompt of token ids, got text")
    assert {error["line"] for error in errors.values()} == {1, 2, 3}


def test_a_line_may_be_one_token_longer_than_what_the_model_takes_as_llm_score_has_it(
    model_dir: Path, tmp_path: Path
) -> None:
    """Nothing is computed of its last token."""
    text = [5 + i % 100 for i in range(tiny.MAX_MODEL_LEN + 1)]
    lines = [
        score_line("score", text[:-2], [text[-2:]]),
        score_line("too long", text[:-1], [text[-1:] * 2]),
        perplexity_line("perplexity", text),
    ]
    answers = run(model_dir, lines, tmp_path)
    llm = LLM(model_dir, dtype="float32")
    [[score]] = llm.score([text[:-2]], [[text[-2:]]])
    [given] = answers["score"]["scores"]
    assert given["token_logprobs"] == pytest.approx(score.logprobs, abs=1e-5)
    assert answers["perplexity"]["perplexity"] == pytest.approx(llm.perplexity(text)[0], rel=1e-5)
    [error] = read_records(tmp_path / "out.errors.jsonl")
    takes = f"the prompt has {tiny.MAX_MODEL_LEN + 1} tokens, and the model takes {tiny.MAX_MODEL_LEN}"
    assert (error["custom_id"], error["error"]["message"].endswith(takes)) == ("too long", True)


def score(model_dir: Path, source: Path, folder: Path, *options: str) -> tuple[int, dict[str, Any], list[Any]]:
    """The exit status, the answers' bodies by custom_id, and the errors of `batchllm score`."""
    arguments = ["score", str(source), "-o", str(folder / "out.jsonl"), "--model", str(model_dir), *options]
    result = CliRunner().invoke(app, [*arguments, "--dtype", "float32"])
    assert result.exit_code in (0, 3), result.output
    bodies = {record["custom_id"]: record["response"]["body"] for record in read_records(folder / "out.jsonl")}
    return result.exit_code, bodies, [r["error"] for r in read_records(folder / "out.errors.jsonl")]


def logprobs(body: dict[str, Any]) -> list[float]:
    return [score["logprob"] for score in body["scores"]]


def test_the_command_scores_rows_as_llm_score_does(model_dir: Path, tmp_path: Path) -> None:
    rows: list[Any] = [
        {"custom_id": "a", "prompt": DOCUMENT, "continuations": [" yes", " no"], "label": 1},
        {"prompt": [5, 6], "continuations": [[7], [8, 9]]},
        {"prompt": DOCUMENT},
        {"custom_id": "d", "prompt": 5, "continuations": [" yes"]},
    ]
    status, bodies, errors = score(model_dir, write_lines(tmp_path / "in.jsonl", rows), tmp_path)
    llm = LLM(model_dir, dtype="float32")
    assert (status, bodies.keys()) == (3, {"a", "row-2"})
    for name, row in (("a", rows[0]), ("row-2", rows[1])):
        [expected] = llm.choose([row["prompt"]], [row["continuations"]])
        assert logprobs(bodies[name]) == pytest.approx([s.logprob for s in expected.scores], abs=1e-4)
        assert bodies[name]["choice"] == expected.index
    assert [(error["line"], error["message"]) for error in errors] == [
        (3, "body.continuations: expected `array`, got `null`"),
        (4, "body.prompt: expected `str | array`, got `int`"),
    ]


@pytest.mark.parametrize("option", [" yes, no", '[" yes", " no"]'])
def test_continuations_are_given_once_for_all_rows_of_a_table(model_dir: Path, tmp_path: Path, option: str) -> None:
    table = tmp_path / "in.csv"
    table.write_text('text,stars\n"Good, kind",5\nBad,1\n')
    options = ["--choices", option, "--template", "Review: {{ text }}. Kind?"]
    status, bodies, _ = score(model_dir, table, tmp_path, *options, "--ordered")
    prompts = ["Review: Good, kind. Kind?", "Review: Bad. Kind?"]
    expected = LLM(model_dir, dtype="float32").score(prompts, [" yes", " no"])
    assert (status, list(bodies)) == (0, ["row-1", "row-2"])
    for body, scores in zip(bodies.values(), expected, strict=True):
        assert logprobs(body) == pytest.approx([s.logprob for s in scores], abs=1e-4)


def test_perplexities_are_those_of_llm_perplexity(model_dir: Path, tmp_path: Path) -> None:
    texts: list[Any] = [DOCUMENT, "Another text.", [5, 6, 7], [5]]
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": text} for text in texts])
    status, bodies, errors = score(model_dir, source, tmp_path, "--perplexity", "--ordered")
    llm = LLM(model_dir, dtype="float32")
    assert status == 3
    assert [body["perplexity"] for body in bodies.values()] == pytest.approx(llm.perplexity(texts[:3]), rel=1e-4)
    assert bodies["row-3"]["object"] == "perplexity"
    assert bodies["row-3"]["usage"]["prompt_tokens"] == 3
    assert [error["message"] for error in errors] == ["body.prompt: expected at least two tokens, got 1"]


def test_scores_are_a_table_that_a_job_goes_on_with(model_dir: Path, tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": DOCUMENT + "x" * i, "continuations": [" yes", " no"]} for i in range(3)]
    source, out = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet"
    job: dict[str, Any] = {"url": "/v1/score", "dtype": "float32", "log": lambda line: None, "resume": True}
    assert run_job(source, out, model_dir, **job).num_answered == 3
    assert run_job(source, out, model_dir, **job).num_earlier == 3
    with pytest.raises(ValueError, match="url is /v1/score there and /v1/perplexity here"):
        run_job(source, out, model_dir, **{**job, "url": "/v1/perplexity"})
    table = sorted(pq.read_table(out).to_pylist(), key=lambda row: row["line"])
    expected = LLM(model_dir, dtype="float32").score([row["prompt"] for row in rows], [" yes", " no"])
    for row, scores in zip(table, expected, strict=True):
        assert logprobs(row) == pytest.approx([s.logprob for s in scores], abs=1e-4)
        assert row["scores"][row["choice"]]["probability"] >= 0.5
        assert (row["text"], row["choices"], row["completion_tokens"]) == (None, None, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--perplexity", "--choices", "a,b"], "--continuations or --perplexity, not both"),
        (["--choices", "["], "expected texts separated by commas, or a JSON list"),
        (["--resume", "--overwrite"], "--resume or --overwrite, not both"),
    ],
)
def test_what_cannot_be_asked_is_wrong_usage(tmp_path: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["score", "in.jsonl", "-o", str(tmp_path / "out"), "--model", "m", *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", "").split())


def test_a_job_asks_rows_where_it_can(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"url: expected one of /v1/chat/completions, .*, got '/v1/embeddings'"):
        run_job("in.jsonl", tmp_path / "out.jsonl", "m", url="/v1/embeddings")
    with pytest.raises(ValueError, match="url: expected '/v1/completions' with completion, got '/v1/score'"):
        run_job("in.jsonl", tmp_path / "out.jsonl", "m", url="/v1/score", completion=True)


def test_a_page_shows_what_was_scored(model_dir: Path, tmp_path: Path) -> None:
    lines = [score_line("a", "x", [" yes", " no"])]
    lines += [{"custom_id": "b", "method": "POST", "url": "/v1/perplexity", "body": {"prompt": DOCUMENT}}]
    bodies = run(model_dir, lines, tmp_path)
    answers = Answers()
    answers.read(tmp_path / "out.jsonl")
    shown = {answer.custom_id: [(c.text, c.finish_reason) for c in answer.completions] for answer in answers.answers}
    assert shown["a"] == [
        (text, f"{of['probability']:.1%}") for text, of in zip((" yes", " no"), bodies["a"]["scores"], strict=True)
    ]
    assert shown["b"] == [(f"perplexity {bodies['b']['perplexity']:,.2f}", None)]


def test_a_perplexity_that_is_no_number_is_infinite() -> None:
    assert perplexity(-math.log(3)) == pytest.approx(3)
    assert perplexity(-1e4) == math.inf
