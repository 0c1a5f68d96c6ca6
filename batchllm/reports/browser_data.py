"""Prompts and answers as the page stores them: rows of a tree in preorder, in compressed chunks that the page unpacks
when it shows or searches them. They are base64, which cannot contain markup."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from batchllm.jobs.line import BatchPrompt, BatchRequest, ContinuedPrompt, Conversation, ScoredText
from batchllm.jobs.read_answers import Answer, Failure
from batchllm.reports.prefix_tree import Row, prefix_rows

CHUNK_BYTES = 200_000  # before compression, and about
MAX_TEXT_CHARS = 20_000  # of one text; longer ones lose their middle
HEAD_CHARS = 15_000


@dataclass(frozen=True)
class BrowserData:
    index: str  # base64 of deflated JSON: [rows below and with it, for each row], [the first row of each chunk]
    chunks: list[str]  # likewise: rows
    row_of: dict[tuple[int, int], int]  # line and place of a prompt -> its row
    rows: list[Row]

    def row_of_prefix(self, line: int, prompt: int, num_prompts: int) -> int | None:
        """The row of the smallest prefix above a prompt that as many prompts share."""
        leaf = self.row_of.get((line, prompt))
        if leaf is None:
            return None
        above = [r for r, row in enumerate(self.rows[:leaf]) if row.end > leaf and row.num_prompts >= num_prompts]
        return above[-1] if above else None


def browser_data(
    requests: Sequence[BatchRequest] | None, answers: Sequence[Answer], failures: Sequence[Failure]
) -> BrowserData:
    """requests: None if the input is missing; answers are then shown without prompts."""
    if requests is None:
        rows = [Row(i + 1, i, "", 1) for i in range(len(answers))]
        contents: Iterable[Any] = (answer_content("", None, answer, 0, 1) for answer in answers)
        return BrowserData(*packed(rows, contents), {}, rows)
    answer_of = {answer.custom_id: answer for answer in answers}
    failure_of = {failure.custom_id: failure for failure in failures}
    prompts = [(request, at) for request in requests for at in range(len(request.prompts))]
    rows = prefix_rows([prompt_text(request.prompts[at]) for request, at in prompts])

    def content(row: Row) -> Any:
        if row.prompt is None:
            return [clipped(row.text), row.num_prompts]
        request, at = prompts[row.prompt]
        if answer := answer_of.get(request.custom_id):
            return answer_content(row.text, request.line, answer, at, len(request.prompts))
        failure = failure_of.get(request.custom_id)
        reason = failure.message if failure else "no answer in the output file"
        return [clipped(row.text), request.custom_id, request.line, [], None, reason]

    row_of = {
        (prompts[row.prompt][0].line, prompts[row.prompt][1]): r for r, row in enumerate(rows) if row.prompt is not None
    }
    return BrowserData(*packed(rows, map(content, rows)), row_of, rows)


def answer_content(text: str, line: int | None, answer: Answer, at: int, num_prompts: int) -> list[Any]:
    """[prompt, custom_id, line, [[text, finish reason], ...], [prompt tokens, saved, output tokens], error]"""
    n = len(answer.completions) // num_prompts
    completions = [[clipped(c.text), c.finish_reason] for c in answer.completions[at * n : (at + 1) * n]]
    tokens = [answer.prompt_tokens, answer.cached_tokens, answer.output_tokens]
    return [clipped(text), answer.custom_id, line, completions, tokens, None]


def packed(rows: Sequence[Row], contents: Iterable[Any]) -> tuple[str, list[str]]:
    """The index and the chunks."""
    chunks: list[str] = []
    begins: list[int] = []
    waiting: list[bytes] = []
    num_bytes = 0

    def close() -> None:
        nonlocal num_bytes
        chunks.append(deflated(b"[" + b",".join(waiting) + b"]"))
        waiting.clear()
        num_bytes = 0

    for r, content in enumerate(contents):
        if not waiting:
            begins.append(r)
        waiting.append(msgspec.json.encode(content))
        num_bytes += len(waiting[-1])
        if num_bytes >= CHUNK_BYTES:
            close()
    if waiting:
        close()
    sizes = [row.end - r for r, row in enumerate(rows)]
    return deflated(msgspec.json.encode([sizes, begins])), chunks


def deflated(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


def prompt_text(prompt: BatchPrompt) -> str:
    """A conversation as a person reads it; token ids as numbers."""
    if isinstance(prompt, Conversation):
        return "\n\n".join(message_text(message) for message in prompt.messages)
    if isinstance(prompt, (ContinuedPrompt, ScoredText)):
        return prompt_text(prompt.prompt)
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))


def message_text(message: Any) -> str:
    calls = message.get("tool_calls")
    return f"{message['role']}:\n{message['content']}" + (f"\n{msgspec.json.encode(calls).decode()}" if calls else "")


def clipped(text: str) -> str:
    if len(text) <= MAX_TEXT_CHARS:
        return text
    tail = MAX_TEXT_CHARS - HEAD_CHARS
    return f"{text[:HEAD_CHARS]}\n\n[… {len(text) - MAX_TEXT_CHARS:,} characters left out …]\n\n{text[-tail:]}"
