"""Tools that a chat line has the model call: what such an answer must be, and the calls that it is read as.

With the tool_choice "required" the text of an answer is a list of calls, [{"name": ..., "parameters": {...}}, ...];
where the line names a function it is the arguments of a call of that one, alone. The forms are vLLM's."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec

from batchllm.jobs.line import PLAIN, AnswerForm, LineError, brief
from batchllm.jobs.openai_body import convert

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
DEFINITIONS = ("$defs", "definitions")  # of a schema, which it refers to from its root


class _Function(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None  # a JSON schema


class _Tool(msgspec.Struct):
    type: Literal["function"]
    function: _Function


class _Name(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class _NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: _Name


def forced_call(body: dict[str, Any]) -> tuple[dict[str, Any] | None, AnswerForm]:
    """The schema that a chat line's answer must have so that it is a call of its tools, and what it is read as; no
    schema where the model is free to call none."""
    choice = body.get("tool_choice", "auto")
    is_parallel: bool = convert(body.get("parallel_tool_calls", True), bool, "body.parallel_tool_calls")
    if choice in ("auto", "none"):
        return None, PLAIN
    if isinstance(choice, str) and choice != "required":
        expected = 'expected "none", "auto", "required" or a function'
        raise LineError("invalid_body", "body.tool_choice", f"{expected}, got {brief(choice)}")
    tools = convert(body.get("tools", []), list[_Tool], "body.tools")
    functions = {tool.function.name: tool.function for tool in tools}
    if choice == "required":
        if not functions:
            raise LineError("invalid_body", "body.tool_choice", "expected tools beside it, got none")
        return _calls_schema(list(functions.values()), is_parallel), AnswerForm(is_calls=True)
    named: str = convert(choice, _NamedFunction, "body.tool_choice").function.name
    if named not in functions:
        expected = f"expected one of the tools ({', '.join(functions) or 'there are none'})"
        raise LineError("invalid_body", "body.tool_choice.function.name", f"{expected}, got {brief(named)}")
    return functions[named].parameters or NO_PARAMETERS, AnswerForm(function=named)


def _calls_schema(functions: list[_Function], is_parallel: bool) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "minItems": 1}
    if not is_parallel:
        schema["maxItems"] = 1
    calls = []
    for function in functions:
        parameters = dict(function.parameters or NO_PARAMETERS)
        for name in DEFINITIONS:
            for defined, definition in parameters.pop(name, {}).items():
                if schema.setdefault(name, {}).setdefault(defined, definition) != definition:
                    reason = f"two of them define {name}/{defined}, and not alike"
                    raise LineError("invalid_body", "body.tools", reason)
        properties = {"name": {"const": function.name}, "parameters": parameters}
        calls.append({"type": "object", "properties": properties, "required": ["name", "parameters"]})
    return schema | {"items": {"anyOf": calls}}


class Call(NamedTuple):
    name: str
    arguments: str  # JSON


class _WrittenCall(msgspec.Struct):
    name: str
    parameters: msgspec.Raw


_CALLS = msgspec.json.Decoder(list[_WrittenCall])


def calls_in(text: str, form: AnswerForm) -> list[Call]:
    """The calls that an answer is; none where it is text, or no whole call because a limit came first."""
    try:
        if form.function is not None:
            msgspec.json.decode(text)
            return [Call(form.function, text)]
        if form.is_calls:
            return [Call(call.name, bytes(call.parameters).decode()) for call in _CALLS.decode(text)]
    except msgspec.DecodeError:
        pass
    return []
