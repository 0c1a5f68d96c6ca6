"""Where a job's lines come from: files that are read in a stream, as often as needed, and what makes requests of
them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batchllm.jobs.inputs import read_lines, rereadable
from batchllm.jobs.line import BatchRequest, LineError
from batchllm.jobs.manifest import Fingerprint, fingerprint_file
from batchllm.jobs.openai_batch import parse_line

NO_LINES = b""


class Source(ABC):
    """path: a file, which is read anew for each iteration. name: what the user calls it."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    @abstractmethod
    def rows(self) -> Iterator[tuple[int, Any]]:
        """What is not blank, numbered as people count: lines of a file, from 1. Raises OSError or ValueError where that
        cannot be read."""

    @abstractmethod
    def parse(self, line: int, row: Any, line_of: dict[str, int]) -> BatchRequest:
        """Raises LineError. line_of: where each custom_id was first seen; the row's is added."""

    def requests(self, done: bytes | bytearray = NO_LINES) -> Iterator[BatchRequest | LineError]:
        """Every row as a request or as what is wrong with it. done: not 0 at the numbers of rows to be passed over."""
        line_of: dict[str, int] = {}
        for line, row in self.rows():
            if line < len(done) and done[line]:
                continue
            try:
                yield self.parse(line, row, line_of)
            except LineError as error:
                yield error

    def fingerprint(self) -> Fingerprint:
        return {"input": fingerprint_file(self.path)}


class OpenAIBatch(Source):
    """Lines of JSON in the OpenAI Batch format. chat_max_tokens: for chat lines that name no limit."""

    def __init__(self, path: Path, name: str, *, chat_max_tokens: int) -> None:
        super().__init__(path, name)
        self.chat_max_tokens = chat_max_tokens

    def rows(self) -> Iterator[tuple[int, bytes]]:
        for line, data in enumerate(read_lines(self.path, self.name), start=1):
            if data and not data.isspace():
                yield line, data

    def parse(self, line: int, row: bytes, line_of: dict[str, int]) -> BatchRequest:
        return parse_line(row.rstrip(b"\r\n"), line, line_of, chat_max_tokens=self.chat_max_tokens)


@contextmanager
def open_source(path: Path, *, chat_max_tokens: int) -> Iterator[Source]:
    """The source that a file is; of a pipe, of a copy of it. Raises OSError or ValueError where it is none."""
    with rereadable(path) as file:
        source = OpenAIBatch(file, str(path), chat_max_tokens=chat_max_tokens)
        next(source.rows(), None)
        yield source
