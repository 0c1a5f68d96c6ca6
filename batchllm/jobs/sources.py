"""Where a job's lines come from: files that are streamed as often as needed, and the code that makes requests of
them."""

from __future__ import annotations

import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from batchllm.jobs.inputs import read_lines, rereadable
from batchllm.jobs.line import CHAT, KINDS, BatchRequest, LineError, LineKind
from batchllm.jobs.manifest import Fingerprint, fingerprint_file
from batchllm.jobs.openai_batch import parse_line
from batchllm.sampling_params import MAX_INT32

NO_LINES = b""


class Source(ABC):
    """path: a file or a directory, read again for each iteration. name: what the user calls it."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._chosen: frozenset[int] | None = None  # None: all

    @abstractmethod
    def rows(self, done: bytes = NO_LINES) -> Iterator[tuple[int, Any]]:
        """Yields lines of a file or rows of a table that are not blank, numbered from 1. Rows that are done may be left
        out.

        Raises OSError or ValueError if they cannot be read."""

    @abstractmethod
    def parse(self, line: int, row: Any, line_of: dict[str, int]) -> BatchRequest:
        """Raises LineError. line_of: where each custom_id was first seen; the row's is added."""

    def files(self) -> list[Path]:
        return [self.path]

    def choose(self, limit: int | None, sample: int | None, seed: int) -> None:
        """Restricts the source to its first `limit` rows, or to `sample` random ones, in their order."""
        numbers: Iterator[int] = (line for line, _ in self.rows())
        if sample is not None:
            known = list(numbers)
            numbers = iter(random.Random(seed).sample(known, min(sample, len(known))))
        self._chosen = frozenset(itertools.islice(numbers, limit))

    def requests(self, done: bytes = NO_LINES) -> Iterator[BatchRequest | LineError]:
        """Every row as a request or as an error. done: as for `chosen`."""
        return self.parsed(self.chosen(done))

    def chosen(self, done: bytes = NO_LINES) -> Iterator[tuple[int, Any]]:
        """The rows of the job. done: not 0 at the numbers of rows to skip."""
        for line, row in self.rows(done):
            if line < len(done) and done[line]:
                continue
            if self._chosen is None or line in self._chosen:
                yield line, row

    def parsed(self, rows: Iterable[tuple[int, Any]]) -> Iterator[BatchRequest | LineError]:
        line_of: dict[str, int] = {}
        for line, row in rows:
            try:
                yield self.parse(line, row, line_of)
            except LineError as error:
                yield error

    def fingerprint(self) -> Fingerprint:
        if self.files() == [self.path]:
            return {"input": fingerprint_file(self.path)}
        return {f"input {file.relative_to(self.path)}": fingerprint_file(file) for file in self.files()}


class OpenAIBatch(Source):
    """Lines of JSON in the OpenAI Batch format. chat_max_tokens: for chat lines without a limit."""

    def __init__(self, path: Path, name: str, *, chat_max_tokens: int) -> None:
        super().__init__(path, name)
        self.chat_max_tokens = chat_max_tokens

    def rows(self, done: bytes = NO_LINES) -> Iterator[tuple[int, bytes]]:
        for line, data in enumerate(read_lines(self.path, self.name), start=1):
            if data and not data.isspace():
                yield line, data

    def parse(self, line: int, row: bytes, line_of: dict[str, int]) -> BatchRequest:
        return parse_line(row.rstrip(b"\r\n"), line, line_of, chat_max_tokens=self.chat_max_tokens)


@dataclass(frozen=True)
class Ask:
    """How the rows of a table become requests.

    template: sandboxed Jinja over the columns; makes the prompt, or the user's message of a chat. None: the row has a
        column for the prompt, named like the field of a body.
    kind: where the request goes. Other fields of its kind (the continuations of a score) may also be columns.
    body: fields of the request beside the prompt, in JSON, as in the OpenAI Batch format.
    """

    template: str | None
    kind: LineKind = CHAT
    body: str = "{}"

    def fingerprint(self) -> Fingerprint:
        return {"template": self.template, "url": self.kind.url, "body": self.body}


@contextmanager
def open_source(
    path: Path | str,
    *,
    chat_max_tokens: int,
    ask: Ask | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> Iterator[Source]:
    """Opens a file or a directory as a source, or a copy of a pipe or a remote file, and reads its first row.

    ask: makes requests of the rows of a table; without it the input is lines in the OpenAI Batch format.
    limit, sample: as for Source.choose; None takes all.

    Raises OSError or ValueError if that is not a source.
    """
    with rereadable(path) as file:
        if ask is None:
            source: Source = OpenAIBatch(file, str(path), chat_max_tokens=chat_max_tokens)
        else:
            from batchllm.jobs.tables import open_table

            source = open_table(file, str(path), ask, chat_max_tokens=chat_max_tokens)
        next(source.rows(), None)
        if limit is not None or sample is not None:
            source.choose(limit, sample, seed)
        yield source


class _Reading(msgspec.Struct):
    """Of a fingerprint, how the job's input was read."""

    template: str | None = None
    url: str | None = None  # None: lines in the OpenAI Batch format
    body: str = "{}"
    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    max_tokens: int = MAX_INT32


def open_source_of(path: Path, fingerprint: Fingerprint) -> AbstractContextManager[Source]:
    """What a job with that fingerprint read, read again; of an empty one, lines in the OpenAI Batch format. Raises
    ValueError where it is no job's, and as `open_source`."""
    try:
        reading = msgspec.convert(fingerprint, _Reading)
        ask = None if reading.url is None else Ask(reading.template, KINDS[reading.url], reading.body)
    except (msgspec.ValidationError, KeyError) as error:
        raise ValueError(f"manifest: fingerprint: {error}") from None
    return open_source(
        path,
        chat_max_tokens=reading.max_tokens,
        ask=ask,
        limit=reading.limit,
        sample=reading.sample,
        seed=reading.seed,
    )
