"""Tables as sources: JSON lines, CSV, Parquet and directories of Hugging Face datasets, whose rows become requests by a
template."""

from __future__ import annotations

import csv
import json
import sys
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from batchllm.jobs.inputs import PARQUET, begins_with, optional_import, read_lines
from batchllm.jobs.line import CHAT, BatchRequest, LineError, brief
from batchllm.jobs.manifest import Fingerprint
from batchllm.jobs.openai_batch import parse_line
from batchllm.jobs.row_template import RowTemplate
from batchllm.jobs.sources import NO_LINES, Ask, Source

DELIMITERS = {".csv": ",", ".tsv": "\t"}
ROWS_AT_ONCE = 1024
NO_TABLE = "expected a directory with .parquet or .arrow files"


class Table(Source):
    """A row's custom_id comes from the column of that name, or is "row-" and its number.

    Raises ValueError if the template does not compile or the body is not a JSON object.
    """

    def __init__(self, path: Path, name: str, ask: Ask, *, chat_max_tokens: int) -> None:
        super().__init__(path, name)
        self._ask, self._chat_max_tokens = ask, chat_max_tokens
        try:
            self._template = None if ask.template is None else RowTemplate(ask.template)
        except ValueError as error:
            raise ValueError(f"template: {error}") from None
        try:
            self._body = msgspec.json.decode(ask.body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeError) as error:
            raise ValueError(f"body: expected a JSON object: {error}") from None

    @abstractmethod
    def rows(self, done: bytes = NO_LINES) -> Iterator[tuple[int, dict[str, Any] | LineError]]: ...

    def parse(self, line: int, row: dict[str, Any] | LineError, line_of: dict[str, int]) -> BatchRequest:
        if isinstance(row, LineError):
            raise row.at(line, None)
        given = row.get("custom_id")
        custom_id = f"row-{line}" if given is None else str(given)
        kind = self._ask.kind
        body: dict[str, Any] = {"max_tokens": self._chat_max_tokens} if kind.draws else {}
        body |= {name: row[name] for name in kind.prompt_fields if name in row} | self._body
        if self._template is not None:
            try:
                text = self._template.render(row)
            except (ValueError, RecursionError) as error:
                raise LineError("invalid_row", "template", str(error)).at(line, custom_id) from None
            body[kind.prompt_fields[0]] = [{"role": "user", "content": text}] if kind is CHAT else text
        try:
            data = msgspec.json.encode({"custom_id": custom_id, "method": "POST", "url": kind.url, "body": body})
        except Exception as error:  # a cell can be anything
            raise LineError("invalid_row", None, f"{type(error).__name__}: {error}").at(line, custom_id) from None
        return parse_line(data, line, line_of, chat_max_tokens=self._chat_max_tokens)

    def fingerprint(self) -> Fingerprint:
        return super().fingerprint() | self._ask.fingerprint()


class JsonTable(Table):
    """Lines of JSON objects."""

    def rows(self, done: bytes = NO_LINES) -> Iterator[tuple[int, dict[str, Any] | LineError]]:
        for line, data in enumerate(read_lines(self.path, self.name), start=1):
            if data and not data.isspace():
                yield line, json_row(data)


def json_row(data: bytes) -> dict[str, Any] | LineError:
    try:
        row = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return LineError("invalid_json_line", None, str(error))
    return (
        row if isinstance(row, dict) else LineError("invalid_json_line", None, f"expected an object, got {brief(row)}")
    )


class CsvTable(Table):
    """Rows under a header, in UTF-8; a row may span several lines."""

    def __init__(self, path: Path, name: str, ask: Ask, delimiter: str, *, chat_max_tokens: int) -> None:
        super().__init__(path, name, ask, chat_max_tokens=chat_max_tokens)
        self._delimiter = delimiter

    def rows(self, done: bytes = NO_LINES) -> Iterator[tuple[int, dict[str, Any] | LineError]]:
        csv.field_size_limit(sys.maxsize)
        lines = (line.decode(errors="surrogateescape") for line in read_lines(self.path, self.name, expects="CSV"))
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        line = 0
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise ValueError(f"input {self.name!r}: a column stands twice in the header {header}")
            for cells in reader:
                if cells:
                    line += 1
                    yield line, csv_row(header, cells)
        except csv.Error as error:
            raise ValueError(f"input {self.name!r}: after row {line}, line {reader.line_num}: {error}") from None


def csv_row(header: list[str], cells: list[str]) -> dict[str, Any] | LineError:
    if len(cells) != len(header):
        return LineError("invalid_row", None, f"expected {len(header)} cells, as the header has, got {len(cells)}")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError as error:
        return LineError("invalid_row", None, f"not valid UTF-8: {error.reason}")
    return dict(zip(header, cells, strict=True))


class ArrowTable(Table):
    """A Parquet file, or a directory of Parquet or Arrow files, as Hugging Face's datasets write them."""

    def __init__(self, path: Path, name: str, ask: Ask, *, chat_max_tokens: int) -> None:
        super().__init__(path, name, ask, chat_max_tokens=chat_max_tokens)
        self._arrow = optional_import("pyarrow", f"input {name!r} is an Arrow table")
        if (path / "dataset_dict.json").exists():
            splits = json.loads((path / "dataset_dict.json").read_text())["splits"]
            raise ValueError(f"input {name!r}: name one of its splits, {', '.join(f'{name}/{s}' for s in splits)}")
        if not self.files():
            raise ValueError(f"input {name!r}: {NO_TABLE}")

    def files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        if (state := self.path / "state.json").exists():  # cache files may lie beside it
            return [self.path / file["filename"] for file in json.loads(state.read_text())["_data_files"]]
        return sorted(file for suffix in ("parquet", "arrow") for file in self.path.rglob(f"*.{suffix}"))

    def rows(self, done: bytes = NO_LINES) -> Iterator[tuple[int, dict[str, Any]]]:
        begin = 1
        for file in self.files():
            try:
                for batch in self._batches(file):
                    if done.count(1, begin, begin + len(batch)) < len(batch):
                        yield from enumerate(batch.to_pylist(), start=begin)
                    begin += len(batch)
            except self._arrow.ArrowException as error:
                raise ValueError(f"input {str(file)!r}: {error}") from None

    def _batches(self, file: Path) -> Iterator[Any]:
        if file.suffix != ".arrow":
            from pyarrow.parquet import ParquetFile

            with ParquetFile(file) as table:
                yield from table.iter_batches(ROWS_AT_ONCE)
            return
        from pyarrow import ipc, memory_map

        with memory_map(str(file)) as mapped:
            for batch in ipc.open_stream(mapped):
                yield from (batch.slice(begin, ROWS_AT_ONCE) for begin in range(0, len(batch), ROWS_AT_ONCE))


def open_table(path: Path, name: str, ask: Ask, *, chat_max_tokens: int) -> Table:
    """The table that a path is: a directory, Parquet by its first bytes, CSV by its name, otherwise lines of JSON."""
    if path.is_dir() or begins_with(path, PARQUET):
        return ArrowTable(path, name, ask, chat_max_tokens=chat_max_tokens)
    suffixes = [suffix for suffix in Path(name).suffixes if suffix not in (".gz", ".zst")]
    if suffixes and (delimiter := DELIMITERS.get(suffixes[-1].lower())):
        return CsvTable(path, name, ask, delimiter, chat_max_tokens=chat_max_tokens)
    return JsonTable(path, name, ask, chat_max_tokens=chat_max_tokens)
