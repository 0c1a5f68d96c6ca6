"""Input files as lines: opened once, pipes kept where they are read twice, what is no lines of JSON named."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

STANDARD_INPUT = Path("-")
UTF8_BOM = b"\xef\xbb\xbf"
# How files open that are no lines of JSON, and what they are.
FORMATS = {
    b"\x1f\x8b": "compressed (gzip -dc FILE | batchllm ... - decompresses it)",
    b"\x28\xb5\x2f\xfd": "compressed (zstd -dc FILE | batchllm ... - decompresses it)",
    b"\xfd7zXZ": "compressed (xz -dc FILE | batchllm ... - decompresses it)",
    b"BZh": "compressed (bzip2 -dc FILE | batchllm ... - decompresses it)",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file",
}
UTF16 = "UTF-16 (iconv -f UTF-16 -t UTF-8 FILE | batchllm ... - converts it)"
JSON_ARRAY = "a JSON array (jq -c '.[]' FILE | batchllm ... - makes a line of each item)"


def read_lines(path: Path, name: str) -> Iterator[bytes]:
    """The lines of a file, without byte order marks, wherever files were concatenated. name: in errors.

    Raises OSError where it cannot be read; ValueError, before the first line, where it is compressed, UTF-16 or a JSON
    array.
    """
    with path.open("rb") as file:
        is_opening = True
        for line in map(without_bom, file):
            if is_opening and line.strip():
                check_format(name, line)
                is_opening = False
            yield line


def without_bom(line: bytes) -> bytes:
    while line.startswith(UTF8_BOM):
        line = line.removeprefix(UTF8_BOM)
    return line


def open_input(path: Path) -> BinaryIO:
    if path != STANDARD_INPUT:
        return path.open("rb")
    if sys.stdin is None:
        raise FileNotFoundError("input '-': standard input is closed")
    return sys.stdin.buffer


def check_format(name: str, line: bytes) -> None:
    """Raises ValueError where that is the first line of something else than lines of JSON."""
    compact = b"".join(line[:100].split())
    if compact == b"[" or compact.startswith(b"[{"):
        found = JSON_ARRAY
    elif line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line[:2]:
        found = UTF16
    else:
        found = next((name for opening, name in FORMATS.items() if line.startswith(opening)), "")
    if found:
        raise ValueError(f"input {name!r}: expected lines of JSON in UTF-8, got {found}")


@contextmanager
def rereadable(path: Path) -> Iterator[Path]:
    """A path of the same content that may be read twice: where `path` is a pipe, of a temporary copy."""
    if path != STANDARD_INPUT and path.is_file():
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="batchllm-") as copy:
        with open_input(path) as file:
            shutil.copyfileobj(file, copy)
        copy.flush()
        yield Path(copy.name)
