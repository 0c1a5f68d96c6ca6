"""A chat template is a program by the model's publisher, so it runs in a separate process with limits.

The process costs as much as importing transformers, once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from batchllm.bounded_process import BoundedProcess, answer_lines
from batchllm.text import printable

# Limits of any template: a chat's, and a row's (batchllm.jobs.row_template).
TIME_LIMIT_S = 5.0  # CPU time for one conversation, or one row
MEMORY_LIMIT_BYTES = 1 << 30  # beyond what the process has before it runs any template
# What is rendered is not much longer than what it is made of.
OUTPUT_LIMIT_CHARS = 1 << 20
OUTPUT_CHARS_PER_INPUT_CHAR = 8


def most_output_chars(num_input_chars: int) -> int:
    return OUTPUT_LIMIT_CHARS + OUTPUT_CHARS_PER_INPUT_CHAR * num_input_chars


class MessagesRefused(ValueError):
    """The template itself refuses these messages; it may accept others."""


class ChatTemplateRunner:
    """Renders conversations."""

    def __init__(self) -> None:
        self.process = BoundedProcess("batchllm.chat_template:serve", "the chat template", TIME_LIMIT_S)

    def render(self, **arguments: Any) -> list[str]:
        """transformers' `render_jinja_template` with these arguments, which must be JSON: a text for each of
        `conversations`.

        Raises MessagesRefused; ValueError if a limit is exceeded or nothing can be rendered; TypeError for arguments
        that are not JSON.
        """
        reply = self.process.ask(arguments)
        if "refused" in reply:
            raise MessagesRefused(printable(reply["refused"]))
        if "failed" in reply:
            raise ValueError(printable(reply["failed"]))
        return list(reply["texts"])


def serve() -> None:
    """In the process."""
    from transformers.utils.chat_template_utils import render_jinja_template

    answer_lines(
        lambda arguments: _render(render_jinja_template, arguments),
        time_limit_s=TIME_LIMIT_S,
        memory_limit_bytes=MEMORY_LIMIT_BYTES,
    )


def _render(render_jinja_template: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """{"texts": one per conversation}, {"refused": the template's reason} or {"failed": what went wrong}."""
    import jinja2

    try:
        texts, _ = render_jinja_template(**arguments)
    except jinja2.TemplateSyntaxError as error:
        return {"failed": f"the chat template does not compile: line {error.lineno}: {error.message}"}
    except jinja2.TemplateError as error:
        return {"refused": f"the chat template refuses the messages: {error}"}
    except MemoryError:
        return {"failed": f"the chat template needs more than {MEMORY_LIMIT_BYTES >> 20} MiB"}
    except Exception as error:
        return {"refused": f"the chat template fails on the messages: {type(error).__name__}: {error}"}
    most = most_output_chars(len(repr(arguments)))
    if any(len(text) > most for text in texts):
        return {"failed": f"the chat template writes more than {most:,} characters"}
    return {"texts": texts}


def plain_message(place: int, message: dict[str, Any]) -> dict[str, Any]:
    """The message as templates expect it: without nulls, OpenAI's list of text parts joined by newlines, and the
    arguments of tool calls as objects. An assistant that calls tools may have no content."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f"messages[{place}]: expected a dict with a role and content, got {message!r:.80}")
    plain = {name: value for name, value in message.items() if value is not None}
    content = plain.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        plain["content"] = content = "\n".join(str(part.get("text")) for part in content)
    if not isinstance(content, str) and not (content is None and plain["role"] == "assistant"):
        raise ValueError(f"messages[{place}].content: expected text or text parts, got {message.get('content')!r:.80}")
    if (calls := plain.get("tool_calls")) is not None:
        where = f"messages[{place}].tool_calls"
        if not isinstance(calls, list):
            raise ValueError(f"{where}: expected a list, got {calls!r:.80}")
        plain["tool_calls"] = [_plain_tool_call(f"{where}[{index}]", call) for index, call in enumerate(calls)]
    return plain


def _plain_tool_call(where: str, call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise ValueError(f"{where}: expected a dict with a function, got {call!r:.80}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise ValueError(f"{where}.function.arguments: not valid JSON: {error}") from None
    return {**call, "function": {**function, "arguments": arguments}}
