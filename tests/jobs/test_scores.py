"""Lines that are scored: what LLM.score says of them, beside lines that are answered."""

import json
from pathlib import Path
from typing import Any

import pytest

from batchllm import LLM
from batchllm.jobs.line import SCORE, ContinuedPrompt, LineError
from batchllm.jobs.openai_batch import parse_line
from tests.jobs.batch_lines import chat_line, completion_line, read_records
from tests.jobs.test_end_to_end import model_dir, run

__all__ = ["model_dir"]  # a fixture

DOCUMENT = "Once upon a time there was a tiny model. "


def score_line(custom_id: str, prompt: Any, continuations: Any, **body: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "continuations": continuations, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/score", "body": body}


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
