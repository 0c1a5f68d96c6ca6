"""One line in, one record out."""

import contextlib
import json
from typing import Any

import pytest

from batchllm.jobs.line import CHAT, COMPLETION, Conversation, LineError
from batchllm.jobs.openai_batch import parse_line
from batchllm.sampling_params import SamplingParams
from tests.jobs.batch_lines import chat_line, completion_line, parse, refusal

JOB = "0123456789abcdef"
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def test_chat_line_becomes_a_conversation() -> None:
    messages = [
        {"role": "developer", "content": "Be brief.", "name": "boss"},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
        {"role": "assistant", "content": "Hi.", "refusal": None, "tool_calls": None},
    ]
    request = parse(chat_line("a", messages=messages))
    assert (request.custom_id, request.line, request.model, request.kind) == ("a", 7, "m", CHAT)
    [prompt] = request.prompts
    assert prompt == Conversation(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hel\nlo"},
            {"role": "assistant", "content": "Hi."},
        ]
    )


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("text", ["text"]),
        ("", [""]),
        (["one", "two"], ["one", "two"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_completion_prompt_is_text_or_tokens_or_a_list_of_them(prompt: Any, prompts: list[Any]) -> None:
    request = parse(completion_line("a", prompt))
    assert request.prompts == prompts
    assert request.kind is COMPLETION
    assert request.model is None


def test_sampling_fields_are_carried_over() -> None:
    fields = {
        "max_tokens": 5,
        "min_tokens": 2,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 7,
        "seed": 11,
        "stop": ["x", "y"],
        "stop_token_ids": [3],
        "ignore_eos": True,
        "n": 2,
    }
    assert parse(chat_line("a", **fields)).params == SamplingParams(**fields)


def test_all_that_changes_a_draw_is_carried_over() -> None:
    fields = {
        "min_p": 0.25,
        "presence_penalty": 0.5,
        "frequency_penalty": -1,
        "repetition_penalty": 1.2,
        "allowed_token_ids": [5, 50256],
        "bad_words": ["no"],
        "logprob_token_ids": [7],
        "prompt_logprobs": 2,
    }
    for line in (chat_line, completion_line):
        request = parse(line("a", **fields, logit_bias={"50256": -100, "5": 2.5}))
        expected = SamplingParams(**fields, logit_bias={50256: -100, 5: 2.5}, max_tokens=request.params.max_tokens)
        assert request.params == expected
        assert request.named_fields == {*fields, "logit_bias"}


@pytest.mark.parametrize(
    ("fields", "logprobs"),
    [({}, None), ({"logprobs": False}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 5.0}, 5)],
)
def test_a_chat_asks_for_logprobs_by_a_flag_and_a_number(fields: dict[str, Any], logprobs: int | None) -> None:
    assert parse(chat_line("a", **fields)).params.logprobs == logprobs


@pytest.mark.parametrize(("value", "logprobs"), [(None, None), (False, None), (0, 0), (5, 5), (3.0, 3)])
def test_a_completion_asks_for_logprobs_by_a_number(value: Any, logprobs: int | None) -> None:
    assert parse(completion_line("a", logprobs=value)).params.logprobs == logprobs


def test_logprobs_of_the_other_endpoint_are_refused() -> None:
    assert refusal(chat_line("a", logprobs=3)).param == "body.logprobs"
    assert refusal(completion_line("a", logprobs=True)).param == "body.logprobs"
    assert refusal(completion_line("a", logprobs=1, top_logprobs=1)).param == "body.top_logprobs"
    alone = refusal(chat_line("a", top_logprobs=1))
    assert str(alone) == "body.top_logprobs: expected logprobs to be true beside it"


def test_silent_bodies_get_the_defaults() -> None:
    assert parse(chat_line("a")).params == SamplingParams(max_tokens=99)
    assert parse(completion_line("a")).params == SamplingParams(max_tokens=16)
    assert parse(chat_line("a", max_tokens=None, temperature=None, tools=None)).params == SamplingParams(max_tokens=99)


def test_max_completion_tokens_is_max_tokens() -> None:
    assert parse(chat_line("a", max_completion_tokens=3)).params.max_tokens == 3
    assert parse(chat_line("a", max_completion_tokens=3, max_tokens=3)).params.max_tokens == 3
    assert parse(completion_line("a", max_new_tokens=3)).params.max_tokens == 3
    error = refusal(chat_line("a", max_completion_tokens=3, max_tokens=4))
    assert str(error) == "body.max_tokens: differs from max_completion_tokens; give one of them"


def test_tool_turns_go_to_the_chat_template() -> None:
    messages = [
        {"role": "user", "content": "Call f."},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "name": "f", "content": [{"type": "text", "text": "42"}]},
        {"role": "assistant", "content": None},
    ]
    [prompt] = parse(chat_line("a", messages=messages)).prompts
    assert prompt == Conversation(
        [
            {"role": "user", "content": "Call f."},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "42", "tool_call_id": "1", "name": "f"},
            {"role": "assistant", "content": ""},
        ]
    )


def test_parts_of_messages_that_ask_for_nothing_are_accepted() -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Hi", "annotations": [], **cached}], **cached},
        {"role": "assistant", "content": "Hi.", "annotations": [], "tool_calls": [], "refusal": None, "audio": None},
    ]
    [prompt] = parse(chat_line("a", messages=messages)).prompts
    assert prompt == Conversation([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi."}])


def test_variables_of_the_chat_template_go_to_it() -> None:
    variables = {"enable_thinking": False}
    [prompt] = parse(chat_line("a", chat_template_kwargs=variables)).prompts
    assert prompt == Conversation([{"role": "user", "content": "Hello"}], {"chat_template_kwargs": variables})
    assert parse(chat_line("a", chat_template_kwargs={})).prompts == parse(chat_line("b")).prompts
    assert parse(completion_line("a", chat_template_kwargs={})).prompts == ["Hello"]
    assert refusal(completion_line("a", chat_template_kwargs=variables)).param == "body.chat_template_kwargs"


def test_tools_and_the_last_turn_go_to_the_chat_template() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    [prompt] = parse(chat_line("a", tools=tools, tool_choice="auto", documents=[{"text": "x"}])).prompts
    assert prompt == Conversation(
        [{"role": "user", "content": "Hello"}], {"tools": tools, "documents": [{"text": "x"}]}
    )
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi th"}]
    continued = {"continue_final_message": True, "add_generation_prompt": False}
    for fields in (continued, {"continue_final_message": True}):
        [prompt] = parse(chat_line("a", messages=messages, **fields)).prompts
        assert prompt == Conversation(messages, continued)
    [prompt] = parse(chat_line("a", add_generation_prompt=False)).prompts
    assert prompt == Conversation([{"role": "user", "content": "Hello"}], {"add_generation_prompt": False})
    for fields in ({"continue_final_message": True, "add_generation_prompt": True}, {"continue_final_message": 1}):
        assert refusal(chat_line("a", **fields)).param == "body.continue_final_message"
    assert refusal(chat_line("a", tools=["f"])).param == "body.tools[0]"
    assert refusal(completion_line("a", tools=tools)).param == "body.tools"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n", "top_k", "seed", "min_tokens"])
def test_a_whole_number_with_a_point_is_an_integer(name: str) -> None:
    params = parse(chat_line("a", **{name: 2.0})).params
    field = "max_tokens" if name == "max_completion_tokens" else name
    assert (getattr(params, field), type(getattr(params, field))) == (2, int)
    assert refusal(chat_line("a", **{name: 2.5})).param == f"body.{name}"


@pytest.mark.parametrize(
    "line",
    [
        '{"custom_id": "a", "custom_id": "a", "body": {}}',
        '{"custom_id": "a", "body": {"max_tokens": 2, "n": 1, "max_tokens": 3}}',
        '{"custom_id": "a", "body": {"messages": [{"role": "user", "content": "x", "cont\\u0065nt": "y"}]}}',
        '{"custom_id": "a", "body": {"metadata": {"k": 1, "k": 1}}}',
    ],
)
def test_a_key_that_stands_twice_is_refused(line: str) -> None:
    error = refusal(line.encode())
    assert (error.code, error.custom_id) == ("duplicate_key", "a")
    assert "occurs 2 times in one object" in str(error)


def test_a_line_of_any_depth_is_read_or_refused() -> None:
    for depth in range(0, 2000, 10):
        metadata = b'{"k":' * depth + b"1" + b"}" * depth
        line = json.dumps(chat_line("a", metadata="here")).encode().replace(b'"here"', metadata)
        with contextlib.suppress(LineError):
            assert parse(line).custom_id == "a"
    assert refusal(line).code == "invalid_json_line"


@pytest.mark.parametrize("field", [{"temperature": 0}, {"max_completion_tokens": 9}, {"logprobs": True}, {"stop": "x"}])
def test_what_belongs_in_the_body_is_refused_beside_it(field: dict[str, Any]) -> None:
    error = refusal(chat_line("a") | field)
    [name] = field
    assert (error.code, error.param, error.custom_id) == ("misplaced_parameter", name, "a")


def test_what_asks_for_nothing_may_stand_beside_the_body() -> None:
    beside = {"note": "x", "temperature": None, "stream": False, "metadata": {}}
    assert parse(chat_line("a") | beside).params == SamplingParams(max_tokens=99)


@pytest.mark.parametrize(
    ("model", "is_another"),
    [(None, False), ("dir", False), ("org/dir", False), ("models/dir/", False), ("gpt-4o", True), ("dir2", True)],
)
def test_a_line_may_name_another_model(model: str | None, is_another: bool) -> None:
    assert parse(chat_line("a", model=model)).names_another("dir") is is_another


@pytest.mark.parametrize(
    "fields",
    [
        {"add_generation_prompt": True, "continue_final_message": False, "repetition_penalty": 1.0, "best_of": 1.0},
        {"user": "u", "metadata": {"k": "v"}, "store": True, "service_tier": "auto"},
        {"tools": [], "tool_choice": "none", "logprobs": False, "top_logprobs": 0, "stream": False},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": None, "response_format": {"type": "text"}},
    ],
)
def test_fields_that_ask_for_nothing_are_accepted(fields: dict[str, Any]) -> None:
    assert parse(chat_line("a", **fields)).params == SamplingParams(max_tokens=99)


@pytest.mark.parametrize(
    "field",
    [
        {"functions": [{"name": "f"}]},
        {"stream": True},
        {"stream": 0},  # no boolean
        {"echo": True},
        {"temprature": 0},  # what is misspelt would change the answer, too
        {"prompt": "of the other endpoint"},
    ],
)
def test_fields_that_would_change_the_answer_are_refused_by_name(field: dict[str, Any]) -> None:
    error = refusal(chat_line("a", **field))
    [name] = field
    assert (error.code, error.param, error.custom_id) == ("unsupported_parameter", f"body.{name}", "a")
    assert f"body.{name}: not supported" in str(error)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"temperature": "hot"}, "body.temperature", "body.temperature: expected `float`, got `str`"),
        ({"temperature": -1}, "body.temperature", "body.temperature: expected a number >= 0, got -1.0"),
        ({"n": 1.5}, "body.n", "body.n: expected `int`, got `float`"),
        ({"n": 129}, "body.n", "body.n: expected at most 128, got 129"),
        ({"top_k": 2**40}, "body.top_k", "expected an integer <= 2147483647, got 1099511627776"),
        ({"max_tokens": 0}, "body.max_tokens", "body.max_tokens: expected `int` >= 1"),
        ({"max_completion_tokens": 0}, "body.max_completion_tokens", "expected `int` >= 1"),
        ({"max_tokens": 2**31}, "body.max_tokens", "expected `int` <= 2147483647"),
        ({"presence_penalty": 3}, "body.presence_penalty", "expected a number from -2 to 2, got 3.0"),
        ({"repetition_penalty": 0}, "body.repetition_penalty", "expected a number from 1e-06 to 1e+06, got 0.0"),
        ({"logit_bias": {"5": 200}}, "body.logit_bias[5]", "expected a number from -100 to 100, got 200.0"),
        ({"logit_bias": {"the": 1}}, "body.logit_bias", "expected `int`, got `str`"),
        ({"logit_bias": [5]}, "body.logit_bias", "expected `object | null`, got `array`"),
        ({"logit_bias": {"-5": 1}}, "body.logit_bias", "expected an integer >= 0, got -5"),
        ({"allowed_token_ids": []}, "body.allowed_token_ids", "expected at least one token id, got []"),
        ({"bad_words": "no"}, "body.bad_words", "expected `array | null`, got `str`"),
        ({"logprobs": 1}, "body.logprobs", "expected `bool`, got `int`"),
        ({"min_tokens": 100}, "body.min_tokens", "expected at most max_tokens (99), got 100"),
        ({"stop": ["a", 3]}, "body.stop[1]", "body.stop[1]: expected `str`, got `int`"),
        ({"stop": ""}, "body.stop", "expected non-empty strings, got ''"),
        ({"model": 3}, "body.model", "expected `str | null`, got `int`"),
        ({"messages": []}, "body.messages", "expected a non-empty list, got []"),
        ({"messages": "hi"}, "body.messages", 'expected a non-empty list, got "hi"'),
        ({"messages": None}, "body.messages", "expected a non-empty list, got nothing"),
        ({"messages": ["hi"]}, "body.messages[0]", "expected `object`, got `str`"),
        ({"messages": [{"role": "human", "content": "x"}]}, "body.messages[0].role", "invalid enum value 'human'"),
        ({"messages": [{"role": "user"}]}, "body.messages[0]", "missing required field `content`"),
        ({"messages": [{"role": "user", "content": None}]}, "body.messages[0]", "missing required field `content`"),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "body.messages[0].tool_calls[0]", "`object`"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "body.messages[0].tool_calls", "user"),
        ({"messages": [{"role": "user", "content": "x", "annotations": [1]}]}, "body.messages[0].annotations", "<= 0"),
        ({"messages": [{"role": "user", "content": "x", "cach_control": 1}]}, "body.messages[0]", "`cach_control`"),
        ({"chat_template_kwargs": "thinking"}, "body.chat_template_kwargs", "expected `object`, got `str`"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "body.messages[0].content[0].type",
            "invalid value 'image_url'",
        ),
    ],
)
def test_bad_chat_bodies_are_refused_with_place_and_reason(fields: dict[str, Any], param: str, message: str) -> None:
    error = refusal(chat_line("a", **fields))
    assert (error.code, error.param, error.custom_id) == ("invalid_body", param, "a")
    assert message in str(error)


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "body.prompt"),
        ([], "body.prompt"),
        (3, "body.prompt"),
        ({}, "body.prompt"),
        ([1, "a"], "body.prompt[1]"),
        (["a", 1], "body.prompt[1]"),
        ([[1], 2], "body.prompt[1]"),
        ([[1], [True]], "body.prompt[1][0]"),
        ([1.5], "body.prompt"),
    ],
)
def test_bad_completion_prompts_are_refused_with_their_place(prompt: Any, param: str) -> None:
    error = refusal(completion_line("a", prompt))
    assert (error.code, error.param) == ("invalid_body", param)


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b'{"custom_id" 1}', "line 7, column 14: JSON is malformed: expected ':'"),
        ('{"é" 1}'.encode(), "line 7, column 6: "),  # columns count characters, not bytes
        (b'{"custom_id": "a', "line 7, column 17: Input data was truncated"),
        (b'{"a": NaN}', "line 7, column 7: "),
        (b'{"a": 1} x', "trailing characters"),
        (b'{"a": "\xff"}', "line 7, column"),
        (b"[" * 100_000, "line 7, column"),
        (b'{"a": "\\ud800"}', "line 7, column"),
        (b"[1]", "line 7: expected a JSON object, got [1]"),
        (b"null", "line 7: expected a JSON object, got nothing"),
    ],
)
def test_what_is_not_json_is_refused_with_line_and_column(data: bytes, where: str) -> None:
    error = refusal(data)
    assert (error.code, error.custom_id) == ("invalid_json_line", None)
    assert where in str(error)


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"custom_id": None}, "invalid_custom_id", "custom_id"),
        ({"custom_id": ""}, "invalid_custom_id", "custom_id"),
        ({"custom_id": 5}, "invalid_custom_id", "custom_id"),
        ({"custom_id": "used"}, "duplicate_custom_id", "custom_id"),
        ({"method": "GET"}, "invalid_method", "method"),
        ({"method": None}, "invalid_method", "method"),
        ({"url": "/v1/embeddings"}, "invalid_url", "url"),
        ({"url": ["/v1/completions"]}, "invalid_url", "url"),
        ({"body": None}, "invalid_body", "body"),
        ({"body": []}, "invalid_body", "body"),
    ],
)
def test_bad_envelopes_are_refused(change: dict[str, Any], code: str, param: str) -> None:
    error = refusal(chat_line("a") | change, used=3)
    assert (error.code, error.param) == (code, param)
    if code == "duplicate_custom_id":
        assert str(error) == 'custom_id: "used" was used on line 3'


def test_a_bad_line_owns_its_custom_id() -> None:
    line_of: dict[str, int] = {}
    with pytest.raises(LineError):
        parse_line(json.dumps(chat_line("a", n=0)).encode(), 1, line_of, chat_max_tokens=9)
    assert line_of == {"a": 1}


def test_seeds_depend_on_the_job_the_custom_id_and_the_prompt_alone() -> None:
    def seed(custom_id: str, job_seed: int = 0, at: int = 0) -> int | None:
        return parse(completion_line(custom_id, ["x", "x"])).seeded_params(at, job_seed).seed

    assert seed("a") == seed("a")
    assert len({seed("a"), seed("b"), seed("a", job_seed=1), seed("a", at=1)}) == 4
    assert parse(completion_line("a", seed=5)).seeded_params(1, 3).seed == 5
    assert parse(completion_line("a", seed=0)).seeded_params(1, 3).seed == 0
