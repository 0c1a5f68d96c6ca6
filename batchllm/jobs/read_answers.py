"""Reads back the lines of an output or errors file of any program that writes OpenAI's format."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from batchllm.jobs.inputs import PARQUET, begins_with, optional_import, read_lines

ROWS_AT_ONCE = 1024  # of a table


class _Function(msgspec.Struct):
    name: str = ""
    arguments: str = ""


class _ToolCall(msgspec.Struct):
    function: _Function = msgspec.field(default_factory=_Function)


class Message(msgspec.Struct):
    """Of a chat's answer."""

    content: str | None = None
    tool_calls: list[_ToolCall] | None = None

    def text(self) -> str | None:
        """With its calls as programs write them."""
        calls = [f"{call.function.name}({call.function.arguments})" for call in self.tool_calls or ()]
        return "\n".join([self.content or "", *calls]).lstrip("\n") if calls else self.content


class _Choice(msgspec.Struct):
    text: str | None = None
    message: Message | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class _Score(msgspec.Struct):
    tokens: list[str] = []
    probability: float | None = None


class _TokenDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _TokenDetails | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice] = []
    scores: list[_Score] = []
    perplexity: float | None = None
    usage: _Usage | None = None
    model: str | None = None


class _Response(msgspec.Struct):
    body: _Body | None = None


class _Error(msgspec.Struct):
    code: str | None = None
    message: str | None = None
    line: int | None = None


class _Record(msgspec.Struct):
    custom_id: str | None = None
    response: _Response | None = None
    error: _Error | None = None


class _Row(msgspec.Struct):
    """Of a table, in which the texts of what was scored are not."""

    custom_id: str
    choices: list[_Choice] | None
    scores: list[_Score] | None
    perplexity: float | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None
    model: str | None


@dataclass(frozen=True)
class Completion:
    """Or the scored continuation, with its probability instead of a reason."""

    text: str
    finish_reason: str | None
    stop_reason: int | str | None


@dataclass(frozen=True)
class Answer:
    custom_id: str
    completions: list[Completion]
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    model: str | None


@dataclass(frozen=True)
class Failure:
    """A line without an answer, or a line of the output file that is not a record."""

    code: str
    message: str
    custom_id: str | None = None
    line: int | None = None  # of the input


@dataclass
class Answers:
    answers: list[Answer] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def read(self, path: Path) -> None:
        """Adds the records of a file, or the rows of a job's table. Raises OSError or ValueError as `read_lines`, and
        for another table."""
        if begins_with(path, PARQUET):
            self._read_table(path)
            return
        for number, data in enumerate(read_lines(path, str(path)), start=1):
            if not data.strip():
                continue
            try:
                record = msgspec.json.decode(data, type=_Record)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                self.failures.append(Failure("unreadable_record", f"{path.name}, line {number}: {error}"))
                continue
            self._add(record)

    def _read_table(self, path: Path) -> None:
        parquet = optional_import("pyarrow.parquet", f"answers {str(path)!r} are a Parquet file")
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    try:
                        answer = msgspec.convert(row, _Row)
                    except msgspec.ValidationError as error:
                        raise ValueError(f"answers {str(path)!r}: {error}") from None
                    details = _TokenDetails(answer.cached_tokens)
                    usage = _Usage(answer.prompt_tokens, answer.completion_tokens, details)
                    given = (answer.choices or [], answer.scores or [], answer.perplexity)
                    self._add(_Record(answer.custom_id, _Response(_Body(*given, usage, answer.model))))

    def _add(self, record: _Record) -> None:
        error, body = record.error, record.response.body if record.response else None
        if error or not body:
            code, message, line = (error.code, error.message, error.line) if error else (None, None, None)
            self.failures.append(Failure(code or "error", message or "without a reason", record.custom_id, line))
            return
        usage = body.usage or _Usage()
        details = usage.prompt_tokens_details or _TokenDetails()
        completions = [
            Completion(
                (choice.message.text() if choice.message else choice.text) or "",
                choice.finish_reason,
                choice.stop_reason,
            )
            for choice in body.choices
        ]
        completions += [
            Completion("".join(score.tokens) or f"continuation {at}", _percent(score.probability), None)
            for at, score in enumerate(body.scores)
        ]
        if body.perplexity is not None:
            completions.append(Completion(f"perplexity {body.perplexity:,.2f}", None, None))
        self.answers.append(
            Answer(
                record.custom_id or "",
                completions,
                usage.prompt_tokens,
                details.cached_tokens or 0,
                usage.completion_tokens,
                body.model,
            )
        )


def _percent(probability: float | None) -> str | None:
    return None if probability is None else f"{probability:.1%}"
