"""A template that makes a prompt of a table's row.

A report takes it from the manifest of a job, which may be a stranger's, so it runs in a separate process with limits,
like a chat template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from batchllm.bounded_process import BoundedProcess, answer_lines
from batchllm.chat_template import MEMORY_LIMIT_BYTES, TIME_LIMIT_S, most_output_chars
from batchllm.text import printable


class RowTemplate:
    """Sandboxed Jinja over the columns of a row. Raises ValueError if it does not compile."""

    def __init__(self, template: str) -> None:
        compile_it = {"template": template}
        self._process = BoundedProcess("batchllm.jobs.row_template:serve", "the template", TIME_LIMIT_S, compile_it)
        self._ask(compile_it)

    def render(self, row: Mapping[str, Any]) -> str:
        """A cell that JSON cannot hold, such as a date, is text to the template. Raises ValueError if the template
        fails on the row or exceeds a limit."""
        return str(self._ask({"row": json.dumps(row, default=str)})["text"])

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        reply = self._process.ask(question)
        if "failed" in reply:
            raise ValueError(printable(reply["failed"]))
        return reply


def serve() -> None:
    """In the process."""
    import jinja2.sandbox

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    template = environment.from_string("")

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        nonlocal template
        try:
            if "template" in question:
                template = environment.from_string(question["template"])
                return {}
            text = template.render(json.loads(question["row"]))
        except jinja2.TemplateSyntaxError as error:
            return {"failed": f"line {error.lineno}: {error.message}"}
        except Exception as error:  # a template can do anything with a row
            return {"failed": f"{type(error).__name__}: {error}"}
        most = most_output_chars(len(question["row"]))
        return {"text": text} if len(text) <= most else {"failed": f"it writes more than {most:,} characters"}

    answer_lines(answer, time_limit_s=TIME_LIMIT_S, memory_limit_bytes=MEMORY_LIMIT_BYTES)
