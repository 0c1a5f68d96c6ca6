"""Input files as lines. Pipes and remote files are copied, because they are read twice; compressed ones are
decompressed; other formats are recognised and named."""

from __future__ import annotations

import gzip
import importlib
import io
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from batchllm.jobs.spool import naming_full_disk

STANDARD_INPUT = Path("-")
PIECE_BYTES = 1 << 17
UTF8_BOM = b"\xef\xbb\xbf"
GZIP, ZSTD, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
# The first bytes of files that are not lines of text, and what such files are.
FORMATS = {
    b"\xfd7zXZ": "compressed (xz -dc FILE | batchllm ... - decompresses it)",
    b"BZh": "compressed (bzip2 -dc FILE | batchllm ... - decompresses it)",
    b"PK\x03\x04": "a zip archive",
    PARQUET: "a Parquet file (--template makes requests of its rows)",
}
UTF16 = "UTF-16 (iconv -f UTF-16 -t UTF-8 FILE | batchllm ... - converts it)"
JSON_ARRAY = "a JSON array (jq -c '.[]' FILE | batchllm ... - makes a line of each item)"


def read_lines(path: Path, name: str, *, expects: str = "JSON") -> Iterator[bytes]:
    """The lines of a file, decompressed, without byte order marks, even inside concatenated files. name: in errors.

    Raises OSError if it cannot be read; ValueError, before the first line, if it is UTF-16, another format or a JSON
    array."""
    with open_decompressed(path, name) as file:
        is_opening = True
        try:
            for line in map(without_bom, file):
                if is_opening and line.strip():
                    check_format(name, line, expects)
                    is_opening = False
                yield line
        except torn_errors() as error:
            raise ValueError(f"input {name!r}: compressed, and torn: {error}") from None


def open_decompressed(path: Path, name: str) -> BinaryIO:
    """Opens a file, decompressed if its first bytes say gzip or zstd. Raises ValueError if the library is missing."""
    file = path.open("rb")
    opening = file.peek(4)[:4]
    if opening.startswith(GZIP):
        file.close()
        return gzip.open(path)  # type: ignore[return-value]
    if opening == ZSTD:
        zstandard = optional_import("zstandard", f"input {name!r} is compressed by zstd")
        return io.BufferedReader(ZstdReader(file, zstandard.ZstdDecompressor()), PIECE_BYTES)
    return file


def begins_with(path: Path, opening: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(opening)) == opening


class ZstdReader(io.RawIOBase):
    """The content of a file of zstd frames. Raises EOFError if the last frame is incomplete, which zstandard's own
    reader takes for the end."""

    def __init__(self, file: BinaryIO, decompressor: Any) -> None:
        self._file, self._decompressor = file, decompressor
        self._frame: Any = None
        self._packed = self._rest = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            self._packed = self._packed or self._file.read(PIECE_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the last frame is incomplete")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._rest = self._frame.decompress(self._packed)
            self._packed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        part = self._rest[: len(buffer)]
        self._rest = self._rest[len(part) :]
        buffer[: len(part)] = part
        return len(part)


def torn_errors() -> tuple[type[Exception], ...]:
    """The errors of the libraries that decompress."""
    zstandard = sys.modules.get("zstandard")
    return (EOFError, zlib.error, gzip.BadGzipFile, *([zstandard.ZstdError] if zstandard else []))


def optional_import(module: str, why: str, extra: str = "data") -> Any:
    """Imports a library that only some jobs need. Raises ValueError that names the extra that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"{why}, which needs {module}: pip install 'batchllm-ext[{extra}]'") from None


def without_bom(line: bytes) -> bytes:
    while line.startswith(UTF8_BOM):
        line = line.removeprefix(UTF8_BOM)
    return line


def is_remote(path: Path | str) -> bool:
    return "://" in str(path)


def open_input(path: Path | str) -> BinaryIO:
    if is_remote(path):
        fsspec = optional_import("fsspec", f"input {str(path)!r} is remote")
        try:
            file: BinaryIO = fsspec.open(str(path), "rb").open()
            return file
        except ImportError as error:  # of the library for that kind of place
            raise ValueError(f"input {str(path)!r}: {error}") from None
    if isinstance(path, Path) and path != STANDARD_INPUT:
        return path.open("rb")
    if sys.stdin is None:
        raise FileNotFoundError("input '-': standard input is closed")
    return sys.stdin.buffer


def check_format(name: str, line: bytes, expects: str) -> None:
    """Raises ValueError if this first line shows that the file is not lines of `expects`."""
    compact = b"".join(line[:100].split()) if expects == "JSON" else b""
    if compact == b"[" or compact.startswith(b"[{"):
        found = JSON_ARRAY
    elif line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line[:2]:
        found = UTF16
    else:
        found = next((name for opening, name in FORMATS.items() if line.startswith(opening)), "")
    if found:
        raise ValueError(f"input {name!r}: expected lines of {expects} in UTF-8, got {found}")


@contextmanager
def rereadable(path: Path | str) -> Iterator[Path]:
    """A path with the same content that can be read twice: for a pipe or a remote file, a temporary copy."""
    if isinstance(path, Path) and path != STANDARD_INPUT and (path.is_file() or path.is_dir()):
        yield path
        return
    with naming_full_disk(f"input {str(path)!r}"), ExitStack() as stack:
        copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="batchllm-"))
        with open_input(path) as file:
            shutil.copyfileobj(file, copy)
        copy.flush()
        keeping = stack.pop_all()
    with keeping:
        yield Path(copy.name)
