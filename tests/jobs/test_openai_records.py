"""The records of a job: what an answer and an error look like."""

import json

from batchllm.jobs.line import LineError
from batchllm.jobs.openai_records import answer_record, error_record
from batchllm.outputs import CompletionOutput, RequestOutput
from tests.jobs.batch_lines import chat_line, completion_line, parse

JOB = "0123456789abcdef"


def output(num_prompt_tokens: int, texts: list[str], num_cached_tokens: int = 0) -> RequestOutput:
    completions = [CompletionOutput(i, text, [5, 6], -1.0, "length") for i, text in enumerate(texts)]
    return RequestOutput("0", None, [1] * num_prompt_tokens, completions, True, num_cached_tokens)


def test_chat_answer_has_openais_shape() -> None:
    record = json.loads(answer_record(parse(chat_line("a")), [output(10, ["Hi."], num_cached_tokens=4)], "dir", JOB))
    body = record["response"].pop("body")
    assert record["custom_id"] == "a"
    assert record["error"] is None
    assert record["id"] == f"batch_req_{JOB}0000000000000007"
    assert record["response"]["status_code"] == 200
    assert body.pop("id").startswith("chatcmpl-")
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "chat.completion",
        "model": "dir",  # the one that ran; the line names "m"
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi.", "refusal": None},
                "finish_reason": "length",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 2,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
    }


def test_completion_choices_go_prompt_by_prompt() -> None:
    request = parse(completion_line("a", ["one", "two"], n=2))
    record = json.loads(answer_record(request, [output(3, ["p", "q"], 2), output(4, ["r", "s"], 3)], "dir", JOB))
    body = record["response"]["body"]
    assert (body["object"], body["model"]) == ("text_completion", "dir")
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "p"), (1, "q"), (2, "r"), (3, "s")]
    assert body["usage"]["prompt_tokens"] == 7
    assert body["usage"]["completion_tokens"] == 8


def test_cached_tokens_are_those_of_all_prompts_of_a_line() -> None:
    outputs = [output(10, ["x"], 4), output(10, ["x"], 9)]
    record = json.loads(answer_record(parse(chat_line("a")), outputs, "dir", JOB))
    assert record["response"]["body"]["usage"]["prompt_tokens_details"]["cached_tokens"] == 13


def test_error_record_has_openais_shape() -> None:
    record = json.loads(error_record(LineError("invalid_body", "body.n", "too many").at(7, "a"), JOB))
    assert record.pop("id") == f"batch_req_{JOB}0000000000000007"
    assert record == {
        "custom_id": "a",
        "response": None,
        "error": {"code": "invalid_body", "message": "body.n: too many", "param": "body.n", "line": 7},
    }


def test_a_completion_cut_by_the_models_length_says_so() -> None:
    cut = RequestOutput("0", None, [1], [CompletionOutput(0, "x", [5], -1.0, "length", "max_model_len")], True, 0)
    [choice] = json.loads(answer_record(parse(chat_line("a")), [cut], "dir", JOB))["response"]["body"]["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "max_model_len")
    assert cut.outputs[0].is_cut
    assert not CompletionOutput(0, "x", [5], -1.0, "stop", "max_model_len").is_cut  # a stop string of that text
