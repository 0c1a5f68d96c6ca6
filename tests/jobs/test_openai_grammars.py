"""What bounds the text of an answer: formats, and calls of tools."""

import json
from typing import Any

import pytest

from batchllm.jobs.openai_records import answer_record
from batchllm.outputs import CompletionOutput, RequestOutput
from batchllm.sampling_params import StructuredOutputsParams
from tests.jobs.batch_lines import chat_line, completion_line, parse, refusal

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "strict": True, "schema": SCHEMA},
                }
            },
            {"json": SCHEMA},
        ),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, {"choice": ["yes", "no"]}),
        ({"structured_outputs": {"regex": "[ab]+"}, "response_format": {"type": "text"}}, {"regex": "[ab]+"}),
    ],
)
def test_a_grammar_comes_in_openais_form_and_in_vllms(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    for line in (chat_line, completion_line):
        assert parse(line("a", **fields)).params.structured_outputs == StructuredOutputsParams(**expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"response_format": {"type": "xml"}}, "body.response_format.type: invalid enum value 'xml'"),
        ({"response_format": {"type": "json_schema"}}, "body.response_format: expected json_schema with the type"),
        (
            {"response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
            "body.response_format: expected json_schema with the type 'json_schema' only",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "body.response_format.json_schema: object missing required field `schema`",
        ),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "body.structured_outputs: excludes response_format; give one of them",
        ),
        ({"structured_outputs": {}}, "body.structured_outputs: expected one of json, regex, choice, grammar, json_obj"),
        ({"structured_outputs": {"choice": []}}, "body.structured_outputs: choice: expected a non-empty list"),
    ],
)
def test_a_grammar_of_another_form_is_refused_by_place(fields: dict[str, Any], message: str) -> None:
    assert str(refusal(chat_line("a", **fields))).startswith(message)


WEATHER = {"type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}, "required": ["city"]}
CITY = {"city": {"enum": ["Oslo", "Rome"]}}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER | {"$defs": CITY}}},
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]
OTHER_CITY = {"type": "function", "function": {"name": "x", "parameters": {"$defs": {"city": {}}}}}


def named(function: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": function}}


def schema_of(**fields: Any) -> Any:
    bound = parse(chat_line("a", tools=TOOLS, **fields)).params.structured_outputs
    return None if bound is None else bound.json


def test_a_required_call_is_bound_to_a_list_of_calls_of_the_tools() -> None:
    def call(name: str, parameters: Any) -> dict[str, Any]:
        properties = {"name": {"const": name}, "parameters": parameters}
        return {"type": "object", "properties": properties, "required": ["name", "parameters"]}

    calls = [call("weather", WEATHER), call("now", {"type": "object", "properties": {}})]
    schema = {"type": "array", "minItems": 1, "$defs": CITY, "items": {"anyOf": calls}}
    assert schema_of(tool_choice="required") == schema_of(tool_choice="required", parallel_tool_calls=True) == schema
    assert schema_of(tool_choice="required", parallel_tool_calls=False) == schema | {"maxItems": 1}


def test_a_named_function_binds_the_text_to_its_parameters() -> None:
    assert schema_of(tool_choice=named("weather")) == WEATHER | {"$defs": CITY}
    assert schema_of(tool_choice=named("now")) == {"type": "object", "properties": {}}
    for choice in ("auto", "none", None):
        assert schema_of(tool_choice=choice, parallel_tool_calls=False) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tool_choice": "required"}, "body.tool_choice: expected tools beside it, got none"),
        ({"tool_choice": "any", "tools": TOOLS}, 'body.tool_choice: expected "none", "auto", "required" or a function'),
        ({"tool_choice": 1, "tools": TOOLS}, "body.tool_choice: expected `object`, got `int`"),
        (
            {"tool_choice": named("then"), "tools": TOOLS},
            'body.tool_choice.function.name: expected one of the tools (weather, now), got "then"',
        ),
        ({"tool_choice": {"type": "allowed_tools"}, "tools": TOOLS}, "body.tool_choice.type: invalid enum value"),
        ({"tool_choice": "required", "tools": [{"type": "custom"}]}, "body.tools[0].type: invalid enum value 'custom'"),
        ({"tool_choice": "auto", "parallel_tool_calls": "no"}, "body.parallel_tool_calls: expected `bool`, got `str`"),
        (
            {"tool_choice": "required", "tools": [*TOOLS, OTHER_CITY]},
            "body.tools: two of them define $defs/city, and not alike",
        ),
        (
            {"tool_choice": "required", "tools": TOOLS, "response_format": {"type": "json_object"}},
            "body.response_format: excludes tool_choice; give one of them",
        ),
    ],
)
def test_a_call_that_cannot_be_had_is_refused_by_place(fields: dict[str, Any], message: str) -> None:
    assert str(refusal(chat_line("a", **fields))).startswith(message)


def choice(text: str, finish_reason: str = "stop", **fields: Any) -> dict[str, Any]:
    request = parse(chat_line("a", tools=TOOLS, **fields))
    answer = RequestOutput("0", None, [1], [CompletionOutput(0, text, [5, 6], -1.0, finish_reason)], True, 0)
    [shown] = json.loads(answer_record(request, [answer], "dir", "0123456789abcdef"))["response"]["body"]["choices"]
    return dict(shown)


def test_calls_are_told_of_as_openai_does() -> None:
    text = '[{"name": "weather", "parameters": {"city":  "Oslo"}}, {"name": "now", "parameters": {}}]'
    required = choice(text, tool_choice="required")
    assert required["finish_reason"] == "tool_calls"
    assert required["message"]["content"] is None
    calls = required["message"]["tool_calls"]
    assert [call["function"] for call in calls] == [
        {"name": "weather", "arguments": '{"city":  "Oslo"}'},
        {"name": "now", "arguments": "{}"},
    ]
    assert len({call["id"] for call in calls}) == 2
    one = choice('{"city": "Rome"}', tool_choice=named("weather"))
    assert one["finish_reason"] == "stop"
    assert [call["function"] for call in one["message"]["tool_calls"]] == [
        {"name": "weather", "arguments": '{"city": "Rome"}'}
    ]


@pytest.mark.parametrize("tool_choice", ["required", named("weather")])
def test_what_is_cut_is_no_call(tool_choice: Any) -> None:
    cut = choice('[{"name": "wea', "length", tool_choice=tool_choice)
    assert cut["finish_reason"] == "length"
    assert cut["message"] == {"role": "assistant", "content": '[{"name": "wea', "refusal": None}


def test_a_free_answer_that_looks_like_a_call_is_text() -> None:
    assert choice('{"city": "Rome"}', tool_choice="auto")["message"]["content"] == '{"city": "Rome"}'
