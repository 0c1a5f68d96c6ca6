"""What a line of an OpenAI Batch file asks for beside its prompt.

A body field is read, known to be harmless, or refused: nothing that would change an answer is passed over.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from batchllm.jobs.line import (
    CHAT,
    COMPLETION,
    PERPLEXITY,
    PLAIN,
    SCORE,
    AnswerForm,
    LineError,
    LineKind,
    brief,
)
from batchllm.jobs.openai_body import convert
from batchllm.jobs.openai_tools import forced_call
from batchllm.sampling_params import MAX_INT32, SamplingParams

DEFAULT_COMPLETIONS_MAX_TOKENS = 16  # OpenAI's
MAX_COMPLETIONS = 128  # of one prompt; OpenAI's

# What each kind of line has of its own: its prompt, and how it asks for log-probabilities (see `_logprobs`).
OWN_FIELDS = {
    CHAT: frozenset(
        {
            *("messages", "chat_template_kwargs", "tools", "documents", "add_generation_prompt"),
            *("continue_final_message", "logprobs", "top_logprobs", "tool_choice"),
        }
    ),
    COMPLETION: frozenset({"prompt", "logprobs", "echo"}),
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

_TokenLimit = Annotated[int, msgspec.Meta(ge=1, le=MAX_INT32)]
_EchoLimit = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT32)]  # 0: the prompt alone


class Asked(NamedTuple):
    """What a line asks for beside its prompt."""

    params: SamplingParams
    named_fields: frozenset[str]  # of the parameters, those that the line gives
    form: AnswerForm


def params_of(kind: LineKind, body: dict[str, Any], default_max_tokens: int) -> Asked:
    """The same objects for all lines that say the same beside their prompts: most lines of a job do."""
    rest = {name: value for name, value in body.items() if name not in kind.prompt_fields}
    try:
        return _params_of_json(kind, msgspec.json.encode(rest), default_max_tokens)
    except (OverflowError, RecursionError):  # an integer, or a depth, that JSON as msgspec has it has no room for
        return _asked(rest, kind, default_max_tokens)


@lru_cache(maxsize=1024)
def _params_of_json(kind: LineKind, rest: bytes, default_max_tokens: int) -> Asked:
    return _asked(msgspec.json.decode(rest), kind, default_max_tokens)


def _asked(body: dict[str, Any], kind: LineKind, default_max_tokens: int) -> Asked:
    """The body's sampling fields and its answer's form; every other field must be harmless or ask for nothing."""
    named_fields = SAMPLING_FIELDS.intersection(body)
    of_draws = SAMPLING_FIELDS | LIMIT_FIELDS | {"response_format"} if kind.draws else frozenset()
    for name in sorted(body.keys() - of_draws - HARMLESS_FIELDS - OWN_FIELDS[kind]):
        _check_asks_for_nothing(name, body[name])
    if not kind.draws:
        return Asked(SamplingParams(max_tokens=1), named_fields, PLAIN)
    body = {name: _integer(value) if name in INTEGER_FIELDS else value for name, value in body.items()}
    calls_schema, form = forced_call(body) if kind is CHAT else (None, PLAIN)
    if kind is COMPLETION and convert(body.get("echo", False), bool, "body.echo"):
        form = AnswerForm(echo=True)
    limit_type = _EchoLimit if form.echo else _TokenLimit
    limits = {name: convert(body[name], limit_type, f"body.{name}") for name in sorted(body.keys() & LIMIT_FIELDS)}
    if len(set(limits.values())) > 1:
        first, *_, last = limits
        raise LineError("invalid_body", f"body.{last}", f"differs from {first}; give one of them")
    fields = {name: value for name, value in body.items() if name in SAMPLING_FIELDS}
    fields["max_tokens"] = next(iter(limits.values()), default_max_tokens)
    if fields["max_tokens"] == 0:
        form, fields["max_tokens"] = AnswerForm(echo=True, generates=False), 1
    fields["logprobs"] = _logprobs(body, kind)
    if form.echo and fields["logprobs"] is not None:
        _score_echo(fields)
    if grammars := _grammars(body, calls_schema):
        (first, grammar), *others = grammars.items()
        if others:
            raise LineError("invalid_body", f"body.{others[0][0]}", f"excludes {first}; give one of them")
        fields["structured_outputs"] = grammar
    params: SamplingParams = convert(fields, SamplingParams, "body")
    if params.n > MAX_COMPLETIONS:
        raise LineError("invalid_body", "body.n", f"expected at most {MAX_COMPLETIONS}, got {params.n}")
    return Asked(params, named_fields, form)


def _score_echo(fields: dict[str, Any]) -> None:
    """The prompt's tokens have log-probabilities as those of the output do, from the second on."""
    for name, value in (("prompt_logprobs", fields["logprobs"]), ("prompt_logprobs_start", 1)):
        if fields.setdefault(name, value) != value:
            reason = f"expected {value}, as echo and logprobs ask for, got {brief(fields[name])}"
            raise LineError("invalid_body", f"body.{name}", reason)


def _grammars(body: dict[str, Any], calls_schema: dict[str, Any] | None) -> dict[str, Any]:
    """What bounds the text: by the name of each field of the body that does, fields of StructuredOutputsParams."""
    given = {
        "tool_choice": None if calls_schema is None else {"json": calls_schema},
        "response_format": _response_format(body),
        "structured_outputs": body.get("structured_outputs"),
    }
    return {name: grammar for name, grammar in given.items() if grammar is not None}


class _JsonSchema(msgspec.Struct):
    """What OpenAI has beside the schema (a name, a description, strictness) changes nothing: all schemas are strict."""

    schema: dict[str, Any]


class _ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None


def _response_format(body: dict[str, Any]) -> dict[str, Any] | None:
    """The fields of StructuredOutputsParams that it stands for."""
    asked = convert(body.get("response_format", {"type": "text"}), _ResponseFormat, "body.response_format")
    if (asked.type == "json_schema") != (asked.json_schema is not None):
        raise LineError("invalid_body", "body.response_format", "expected json_schema with the type 'json_schema' only")
    if asked.json_schema is not None:
        return {"json": asked.json_schema.schema}
    return {"json_object": True} if asked.type == "json_object" else None


def _logprobs(body: dict[str, Any], kind: LineKind) -> int | None:
    """SamplingParams.logprobs: a number in a completion's body; in a chat's a flag, with the number beside it."""
    if kind is COMPLETION:
        value = body.get("logprobs")
        return None if value is False else convert(value, int | None, "body.logprobs")
    is_asked_for = convert(body.get("logprobs", False), bool, "body.logprobs")
    count: int = convert(body.get("top_logprobs", 0), int, "body.top_logprobs")
    if count and not is_asked_for:
        raise LineError("invalid_body", "body.top_logprobs", "expected logprobs to be true beside it")
    return count if is_asked_for else None


def _integer(value: Any) -> Any:
    """2 for the 2.0 that data frames write where a column has gaps."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def asks_for_nothing(name: str, value: Any) -> bool:
    neutral = NEUTRAL_VALUES.get(name, ())
    return any(isinstance(value, bool) is isinstance(allowed, bool) and value == allowed for allowed in neutral)


def _check_asks_for_nothing(name: str, value: Any) -> None:
    if asks_for_nothing(name, value):
        return
    neutral = NEUTRAL_VALUES.get(name, ())
    allowed_text = f" (accepted: {brief(neutral[0])})" if neutral else ""
    raise LineError("unsupported_parameter", f"body.{name}", f"not supported, got {brief(value)}{allowed_text}")
