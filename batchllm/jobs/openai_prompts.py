"""The prompts of a line of an OpenAI Batch file: conversations, completions, and our own to be scored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec

from batchllm.jobs.line import (
    CHAT,
    COMPLETION,
    PERPLEXITY,
    SCORE,
    BatchPrompt,
    ContinuedPrompt,
    Conversation,
    LineError,
    LineKind,
    ScoredText,
    brief,
)
from batchllm.jobs.openai_body import convert, without_nulls

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
            message |= without_nulls({"tool_call_id": self.tool_call_id, "name": self.name})
        return message


def _conversation(body: dict[str, Any]) -> list[BatchPrompt]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise LineError("invalid_body", "body.messages", f"expected a non-empty list, got {brief(messages)}")
    parsed = convert([without_nulls(message) for message in messages], list[_ChatMessage], "body.messages")
    turns = [message.for_template(f"body.messages[{i}]") for i, message in enumerate(parsed)]
    return [Conversation(turns, _template_options(body))]


def _template_options(body: dict[str, Any]) -> dict[str, Any]:
    def given(name: str, default: Any, kind: Any) -> Any:
        return convert(body[name], kind, f"body.{name}") if name in body else default

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
        return list(convert(prompt, list[str], "body.prompt"))
    if isinstance(first, int):
        return [convert(prompt, list[int], "body.prompt")]
    if isinstance(first, list):
        return list(convert(prompt, list[list[int]], "body.prompt"))
    expected = "expected text, token ids, or a non-empty list of one of them"
    raise LineError("invalid_body", "body.prompt", f"{expected}, got {brief(prompt)}")


def _continued_prompts(body: dict[str, Any]) -> list[BatchPrompt]:
    prompt = convert(body.get("prompt"), str | list[int], "body.prompt")
    continuations = convert(body.get("continuations"), list[str | list[int]], "body.continuations")
    if not continuations:
        raise LineError("invalid_body", "body.continuations", "expected at least one")
    return [ContinuedPrompt(prompt, continuation) for continuation in continuations]


def _scored_text(body: dict[str, Any]) -> list[BatchPrompt]:
    return [ScoredText(convert(body.get("prompt"), str | list[int], "body.prompt"))]


# What reads the prompts of each kind of line.
PROMPTS: dict[LineKind, Callable[[dict[str, Any]], list[BatchPrompt]]] = {
    CHAT: _conversation,
    COMPLETION: _completion_prompts,
    SCORE: _continued_prompts,
    PERPLEXITY: _scored_text,
}
PROMPT_PLACES = {kind: f"body.{kind.prompt_fields[0]}" for kind in PROMPTS}
