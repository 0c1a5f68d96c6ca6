"""The lines of an OpenAI Batch file, read and checked.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...], ...}}

A body field is read, known to be harmless, or refused: nothing that would change an answer is passed over.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec

from batchllm.jobs.line import (
    CHAT,
    COMPLETION,
    DUPLICATE_ID,
    KINDS,
    PERPLEXITY,
    SCORE,
    BatchPrompt,
    BatchRequest,
    ContinuedPrompt,
    Conversation,
    LineError,
    LineKind,
    ScoredText,
    brief,
)
from batchllm.sampling_params import MAX_INT32, SamplingParams

DEFAULT_COMPLETIONS_MAX_TOKENS = 16  # OpenAI's
MAX_COMPLETIONS = 128  # of one prompt; OpenAI's

# What each kind of line has of its own: its prompt, and how it asks for log-probabilities (see `_logprobs`).
OWN_FIELDS = {
    CHAT: frozenset(
        {
            *("messages", "chat_template_kwargs", "tools", "documents", "add_generation_prompt"),
            *("continue_final_message", "logprobs", "top_logprobs"),
        }
    ),
    COMPLETION: frozenset({"prompt", "logprobs"}),
    SCORE: frozenset(SCORE.prompt_fields),
    PERPLEXITY: frozenset(PERPLEXITY.prompt_fields),
}
# Fields of a body that are SamplingParams' fields of that name. By name, because not every field that both have means
# the same: see `_logprobs`.
SAMPLING_FIELDS = frozenset(
    {
        *("n", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "allowed_token_ids"),
        *("bad_words", "max_tokens", "min_tokens", "include_stop_str_in_output", "skip_special_tokens"),
        *("logprob_token_ids", "prompt_logprobs", "prompt_logprobs_start", "structured_outputs"),
    }
)
LIMIT_FIELDS = frozenset({"max_tokens", "max_completion_tokens", "max_new_tokens"})  # vLLM's, OpenAI's, Hugging Face's
HARMLESS_FIELDS = frozenset(
    {
        *("model", "user", "metadata", "store", "service_tier", "safety_identifier", "priority"),
        *("parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_retention"),
    }
)
INTEGER_FIELDS = LIMIT_FIELDS | {
    "n",
    "top_k",
    "seed",
    "min_tokens",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "prompt_logprobs_start",
}
# What asks for nothing, of fields that we do not implement, or not for both endpoints.
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "best_of": (1,),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "frequency_penalty": (0,),
    "functions": ([],),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_p": (0,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "stream": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "use_beam_search": (False,),
}
# What asks for something only in the body; beside it, it would be passed over.
BODY_FIELDS = SAMPLING_FIELDS | INTEGER_FIELDS | NEUTRAL_VALUES.keys()


def parse_line(data: bytes, line: int, line_of: dict[str, int], *, chat_max_tokens: int) -> BatchRequest:
    """Reads one line. Raises LineError.

    line_of: where each custom_id was first seen; this line's is added. An id belongs to the first line with it,
    be that line good or bad, so the output file never holds one twice.
    """
    custom_id = None
    try:
        record = _decode_object(data, line)
        custom_id = _custom_id(record)
        if (first := line_of.setdefault(custom_id, line)) != line:
            raise LineError(DUPLICATE_ID, "custom_id", f"{brief(custom_id)} was used on line {first}")
        _check_keys(data, record)
        kind, body = _endpoint(record)
        prompts = _PROMPTS[kind](body)
        default_max_tokens = chat_max_tokens if kind is CHAT else DEFAULT_COMPLETIONS_MAX_TOKENS
        params, named_fields = _params_of(kind, body, default_max_tokens)
        return BatchRequest(
            line=line,
            custom_id=custom_id,
            kind=kind,
            model=_model_name(body),
            prompts=prompts,
            params=params,
            named_fields=named_fields,
            prompt_place=_PROMPT_PLACES[kind],
        )
    except LineError as error:
        raise error.at(line, custom_id) from None


_TokenLimit = Annotated[int, msgspec.Meta(ge=1, le=MAX_INT32)]


_Nothing = Annotated[list[Any], msgspec.Meta(max_length=0)]


class _TextPart(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    text: str
    cache_control: Any = None  # a hint to a cache, which changes no answer
    annotations: _Nothing = []


class _Function(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    arguments: str | dict[str, Any] = "{}"  # JSON, or what it says


class _ToolCall(msgspec.Struct, tag_field="type", tag="function", forbid_unknown_fields=True, omit_defaults=True):
    function: _Function
    id: str | None = None
    index: int | None = None  # of a streamed answer


class _ChatMessage(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_TextPart] | None = None
    name: str | None = None  # a participant's: chat templates of open models have no place for it; or a tool's
    tool_calls: list[_ToolCall] = []
    tool_call_id: str | None = None
    cache_control: Any = None
    annotations: _Nothing = []

    def for_template(self, where: str) -> dict[str, Any]:
        if self.content is None and self.role != "assistant":
            raise LineError("invalid_body", where, "object missing required field `content`")
        if self.tool_calls and self.role != "assistant":
            raise LineError("invalid_body", f"{where}.tool_calls", f"not supported of the role {self.role!r}")
        if self.tool_call_id is not None and self.role != "tool":
            raise LineError("invalid_body", f"{where}.tool_call_id", f"not supported of the role {self.role!r}")
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "\n".join(part.text for part in parts)
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            message["tool_calls"] = msgspec.to_builtins(self.tool_calls)
        if self.role == "tool":
            message |= _without_nulls({"tool_call_id": self.tool_call_id, "name": self.name})
        return message


def _decode_object(data: bytes, line: int) -> dict[str, Any]:
    try:
        record = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        where = f"line {line}, column {_error_column(data, error)}"
        raise LineError("invalid_json_line", None, f"{where}: {error}") from None
    if not isinstance(record, dict):
        raise LineError("invalid_json_line", None, f"line {line}: expected a JSON object, got {brief(record)}")
    return record


def _check_keys(data: bytes, record: dict[str, Any]) -> None:
    """Raises LineError where an object of the line has a key twice: readers of JSON differ in which they take.

    record: what the line decodes to, which has each key once. Written again it has as many quotation marks as the
    line, where no key was dropped and none of the line's marks is an escape of another form."""
    try:
        if b"\\u0022" not in data and data.count(b'"') == msgspec.json.encode(record).count(b'"'):
            return
    except OverflowError:  # an integer that JSON as msgspec writes it has no room for
        pass
    try:
        _KEYS.decode(data.decode())
    except RecursionError:
        raise LineError("invalid_json_line", None, "nested too deeply") from None


def _check_pairs(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        [(key, count)] = Counter(key for key, _ in pairs).most_common(1)
        raise LineError("duplicate_key", None, f"the key {brief(key)} stands {count} times in one object")


_KEYS = json.JSONDecoder(object_pairs_hook=_check_pairs, parse_int=float)  # of any number of digits


def _error_column(data: bytes, error: Exception) -> int:
    """Where decoding stopped, in characters from 1; the end of the line where the decoder does not say."""
    at = re.search(r"\(byte (\d+)\)", str(error))
    num_good_bytes = int(at[1]) if at else len(data)
    return len(data[:num_good_bytes].decode(errors="replace")) + 1


def _custom_id(record: dict[str, Any]) -> str:
    custom_id = record.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise LineError("invalid_custom_id", "custom_id", f"expected a non-empty string, got {brief(custom_id)}")
    return custom_id


def _endpoint(record: dict[str, Any]) -> tuple[LineKind, dict[str, Any]]:
    """The kind of line and the body's fields, a null one being no field."""
    method, url, body = (record.get(name) for name in ("method", "url", "body"))
    if method != "POST":
        raise LineError("invalid_method", "method", f'expected "POST", got {brief(method)}')
    kind = KINDS.get(url) if isinstance(url, str) else None
    if kind is None:
        expected = " or ".join(f'"{url}"' for url in KINDS)
        raise LineError("invalid_url", "url", f"expected {expected}, got {brief(url)}")
    if not isinstance(body, dict):
        raise LineError("invalid_body", "body", f"expected an object, got {brief(body)}")
    for name in sorted(BODY_FIELDS.intersection(record)):
        if record[name] is not None and not _asks_for_nothing(name, record[name]):
            raise LineError("misplaced_parameter", name, "expected inside body, got it beside body")
    return kind, _without_nulls(body)


def _without_nulls(value: Any) -> Any:
    return {name: v for name, v in value.items() if v is not None} if isinstance(value, dict) else value


def _model_name(body: dict[str, Any]) -> str | None:
    name = body.get("model")
    return name if name is None or isinstance(name, str) else _convert(name, str | None, "body.model")


def _conversation(body: dict[str, Any]) -> list[BatchPrompt]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise LineError("invalid_body", "body.messages", f"expected a non-empty list, got {brief(messages)}")
    parsed = _convert([_without_nulls(message) for message in messages], list[_ChatMessage], "body.messages")
    turns = [message.for_template(f"body.messages[{i}]") for i, message in enumerate(parsed)]
    return [Conversation(turns, _template_options(body))]


def _template_options(body: dict[str, Any]) -> dict[str, Any]:
    def given(name: str, default: Any, kind: Any) -> Any:
        return _convert(body.get(name, default), kind, f"body.{name}")

    options = {
        "chat_template_kwargs": given("chat_template_kwargs", {}, dict[str, Any]),
        "tools": given("tools", [], list[dict[str, Any]]),
        "documents": given("documents", [], list[dict[str, Any]]),
        "continue_final_message": given("continue_final_message", False, bool),
    }
    continues = options["continue_final_message"]
    opens = given("add_generation_prompt", not continues, bool)
    if continues and opens:
        raise LineError("invalid_body", "body.continue_final_message", "excludes add_generation_prompt")
    asked_for = {name: value for name, value in options.items() if value}
    return asked_for if opens else asked_for | {"add_generation_prompt": False}


def _completion_prompts(body: dict[str, Any]) -> list[BatchPrompt]:
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return [prompt]
    first = prompt[0] if isinstance(prompt, list) and prompt else None
    if isinstance(first, str):
        return list(_convert(prompt, list[str], "body.prompt"))
    if isinstance(first, int):
        return [_convert(prompt, list[int], "body.prompt")]
    if isinstance(first, list):
        return list(_convert(prompt, list[list[int]], "body.prompt"))
    expected = "expected text, token ids, or a non-empty list of one of them"
    raise LineError("invalid_body", "body.prompt", f"{expected}, got {brief(prompt)}")


def _continued_prompts(body: dict[str, Any]) -> list[BatchPrompt]:
    prompt = _convert(body.get("prompt"), str | list[int], "body.prompt")
    continuations = _convert(body.get("continuations"), list[str | list[int]], "body.continuations")
    if not continuations:
        raise LineError("invalid_body", "body.continuations", "expected at least one")
    return [ContinuedPrompt(prompt, continuation) for continuation in continuations]


def _scored_text(body: dict[str, Any]) -> list[BatchPrompt]:
    return [ScoredText(_convert(body.get("prompt"), str | list[int], "body.prompt"))]


# What reads the prompts of each kind of line.
_PROMPTS: dict[LineKind, Callable[[dict[str, Any]], list[BatchPrompt]]] = {
    CHAT: _conversation,
    COMPLETION: _completion_prompts,
    SCORE: _continued_prompts,
    PERPLEXITY: _scored_text,
}
_PROMPT_PLACES = {kind: f"body.{kind.prompt_fields[0]}" for kind in _PROMPTS}


ParamsAndNames = tuple[SamplingParams, frozenset[str]]  # and which of its fields the line gives


def _params_of(kind: LineKind, body: dict[str, Any], default_max_tokens: int) -> ParamsAndNames:
    """The same objects for all lines that say the same beside their prompts: most lines of a job do."""
    rest = {name: value for name, value in body.items() if name not in kind.prompt_fields}
    try:
        return _params_of_json(kind, msgspec.json.encode(rest), default_max_tokens)
    except (OverflowError, RecursionError):  # an integer, or a depth, that JSON as msgspec has it has no room for
        return _params_and_names(rest, kind, default_max_tokens)


@lru_cache(maxsize=1024)
def _params_of_json(kind: LineKind, rest: bytes, default_max_tokens: int) -> ParamsAndNames:
    return _params_and_names(msgspec.json.decode(rest), kind, default_max_tokens)


def _params_and_names(rest: dict[str, Any], kind: LineKind, default_max_tokens: int) -> ParamsAndNames:
    params = _sampling_params(rest, kind, default_max_tokens=default_max_tokens)
    return params, SAMPLING_FIELDS.intersection(rest)


def _sampling_params(body: dict[str, Any], kind: LineKind, *, default_max_tokens: int) -> SamplingParams:
    """The body's sampling fields; every other field must be harmless or ask for nothing."""
    of_draws = SAMPLING_FIELDS | LIMIT_FIELDS | {"response_format"} if kind.draws else frozenset()
    for name in sorted(body.keys() - of_draws - HARMLESS_FIELDS - OWN_FIELDS[kind]):
        _check_asks_for_nothing(name, body[name])
    if not kind.draws:
        return SamplingParams(max_tokens=1)
    body = {name: _integer(value) if name in INTEGER_FIELDS else value for name, value in body.items()}
    limits = {name: _convert(body[name], _TokenLimit, f"body.{name}") for name in sorted(body.keys() & LIMIT_FIELDS)}
    if len(set(limits.values())) > 1:
        first, *_, last = limits
        raise LineError("invalid_body", f"body.{last}", f"differs from {first}; give one of them")
    fields = {name: value for name, value in body.items() if name in SAMPLING_FIELDS}
    fields["max_tokens"] = next(iter(limits.values()), default_max_tokens)
    fields["logprobs"] = _logprobs(body, kind)
    if grammar := _response_format(body):
        if "structured_outputs" in fields:
            raise LineError("invalid_body", "body.structured_outputs", "excludes response_format; give one of them")
        fields["structured_outputs"] = grammar
    params: SamplingParams = _convert(fields, SamplingParams, "body")
    if params.n > MAX_COMPLETIONS:
        raise LineError("invalid_body", "body.n", f"expected at most {MAX_COMPLETIONS}, got {params.n}")
    return params


class _JsonSchema(msgspec.Struct):
    """What OpenAI has beside the schema (a name, a description, strictness) changes nothing: all schemas are strict."""

    schema: dict[str, Any]


class _ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None


def _response_format(body: dict[str, Any]) -> dict[str, Any] | None:
    """The fields of StructuredOutputsParams that it stands for."""
    asked = _convert(body.get("response_format", {"type": "text"}), _ResponseFormat, "body.response_format")
    if (asked.type == "json_schema") != (asked.json_schema is not None):
        raise LineError("invalid_body", "body.response_format", "expected json_schema with the type 'json_schema' only")
    if asked.json_schema is not None:
        return {"json": asked.json_schema.schema}
    return {"json_object": True} if asked.type == "json_object" else None


def _logprobs(body: dict[str, Any], kind: LineKind) -> int | None:
    """SamplingParams.logprobs: a number in a completion's body; in a chat's a flag, with the number beside it."""
    if kind is COMPLETION:
        value = body.get("logprobs")
        return None if value is False else _convert(value, int | None, "body.logprobs")
    is_asked_for = _convert(body.get("logprobs", False), bool, "body.logprobs")
    count: int = _convert(body.get("top_logprobs", 0), int, "body.top_logprobs")
    if count and not is_asked_for:
        raise LineError("invalid_body", "body.top_logprobs", "expected logprobs to be true beside it")
    return count if is_asked_for else None


def _integer(value: Any) -> Any:
    """2 for the 2.0 that data frames write where a column has gaps."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _asks_for_nothing(name: str, value: Any) -> bool:
    neutral = NEUTRAL_VALUES.get(name, ())
    return any(isinstance(value, bool) is isinstance(allowed, bool) and value == allowed for allowed in neutral)


def _check_asks_for_nothing(name: str, value: Any) -> None:
    if _asks_for_nothing(name, value):
        return
    neutral = NEUTRAL_VALUES.get(name, ())
    allowed_text = f" (accepted: {brief(neutral[0])})" if neutral else ""
    raise LineError("unsupported_parameter", f"body.{name}", f"not supported, got {brief(value)}{allowed_text}")


def _convert(value: Any, expected: Any, where: str) -> Any:
    """`value` as that type, or the place and the reason: "Expected `int`, got `str` - at `$.n`" is at body.n."""
    try:
        return msgspec.convert(value, expected, str_keys=True)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `")
        path = path.removeprefix("key` in `").removeprefix("$").rstrip("`")
        if not path and re.match(r"[\w\[\]]+: ", reason):  # SamplingParams names its field itself
            field, _, reason = reason.partition(": ")
            path = f".{field}"
        raise LineError("invalid_body", where + path, reason[0].lower() + reason[1:]) from None
