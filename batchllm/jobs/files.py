"""The files of a job: input read once, nothing replaced unasked, and what was written is whole and on disk.

A file is its device and inode: hard links, symbolic links and bind mounts are more names of one file.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

STANDARD_INPUT = Path("-")
STDIN, STDOUT, STDERR = 0, 1, 2
UTF8_BOM = b"\xef\xbb\xbf"
FileId = tuple[int, int, str]  # device, inode, ""; of a file that is still to be made, its directory's, and its name
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


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, a pipe or (-) standard input, opened once; without byte order marks, wherever files were
    concatenated.

    Raises OSError where it cannot be read; ValueError, before the first line, where it is compressed, UTF-16 or a JSON
    array.
    """
    with open_input(path) as file:
        is_opening = True
        for line in map(without_bom, file):
            if is_opening and line.strip():
                check_format(path, line)
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


def check_format(path: Path, line: bytes) -> None:
    """Raises ValueError where that is the first line of something else than lines of JSON."""
    compact = b"".join(line[:100].split())
    if compact == b"[" or compact.startswith(b"[{"):
        found = JSON_ARRAY
    elif line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line[:2]:
        found = UTF16
    else:
        found = next((name for opening, name in FORMATS.items() if line.startswith(opening)), "")
    if found:
        raise ValueError(f"input {str(path)!r}: expected lines of JSON in UTF-8, got {found}")


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


def check_files(
    input: Path,
    outputs: Mapping[str, Path | None],
    *,
    overwrite: bool,
    model_files: Iterable[Path] = (),
    replaced: Mapping[str, Path | None] | None = None,
) -> None:
    """Raises OSError or ValueError where the input is missing, an output cannot be written, holds something that may
    not be replaced or is another job's, or two are one file. Changes nothing, and opens no pipe.

    replaced: outputs of which whoever writes them checks what they hold.
    """
    if input != STANDARD_INPUT and not input.exists():
        raise FileNotFoundError(f"input {str(input)!r}: no such file")
    names: dict[FileId, str] = {}
    claim(names, "standard error", STDERR)
    claim(names, "input", STDIN if input == STANDARD_INPUT else input)
    for model_file in model_files:  # of which some may be one, in a cache
        if file_id := identify(model_file):
            names.setdefault(file_id, "model")
    for name, path in outputs.items():
        if path is not None:
            check_writable(name, path)
            claim(names, name, path)
            if path.is_file():
                with RecordFile(name, path, overwrite=overwrite):
                    pass
    for name, path in (replaced or {}).items():
        if path is not None:
            check_writable(name, path)
            claim(names, name, path)


def claim(names: dict[FileId, str], name: str, path: Path | int) -> None:
    """Raises ValueError if the file has a name already. Terminals and /dev/null may be several files at a time."""
    file_id = identify(path)
    if file_id is None:
        return
    if other := names.get(file_id):
        raise ValueError(f"{name} {str(path)!r}: is the {other} file")
    names[file_id] = name


def identify(path: Path | int) -> FileId | None:
    if isinstance(path, Path) and not path.exists():
        target = Path(os.path.realpath(path))
        directory = target.parent.stat()
        return directory.st_dev, directory.st_ino, target.name
    status = os.stat(path)
    is_file_or_pipe = stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)
    return (status.st_dev, status.st_ino, "") if is_file_or_pipe else None


def check_writable(name: str, path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{name} {str(path)!r}: is a directory")
    directory = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
    if not path.exists() and not directory.is_dir():
        raise FileNotFoundError(f"{name} {str(path)!r}: no such directory {str(directory)!r}")
    if not os.access(path if path.exists() else directory, os.W_OK):
        raise PermissionError(f"{name} {str(path)!r}: not writable")


def is_standard_output(path: Path | None) -> bool:
    return path is not None and path.exists() and os.path.samestat(path.stat(), os.fstat(STDOUT))


class RecordFile:
    """A file that this job alone writes, record by record; a pipe or a device is written as it is.

    Opening changes nothing: `empty` does, so that a job can open all its files before it replaces one. Leaving the
    context puts what was written on disk, and checks that it is what the path now holds.

    Raises OSError that names the file: on opening, if it is another job's or, without overwrite, not empty; on writing,
    with the file cut back to its whole records; on leaving, if the file was deleted, replaced or written by others.
    """

    def __init__(self, name: str, path: Path, *, overwrite: bool) -> None:
        self._title = f"{name} {str(path)!r}"
        self._path = path
        self._num_records = 0
        with self._named():
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        status = os.fstat(self._file)
        self._is_regular = stat.S_ISREG(status.st_mode)
        self._size = status.st_size
        try:
            if self._is_regular:
                lock(self._file, self._title)
            if self._is_regular and os.fstat(self._file).st_size and not overwrite:
                raise FileExistsError(f"{self._title}: exists and is not empty; --overwrite replaces it")
        except OSError:
            os.close(self._file)
            raise

    def empty(self) -> None:
        if self._is_regular:
            os.ftruncate(self._file, 0)
        self._size = 0

    def write(self, record: bytes) -> None:
        """Hands the whole record to the operating system, or raises with none of it in the file."""
        rest = memoryview(record)
        try:
            with self._named(f"; the {self._num_records:,} lines before are whole" if self._num_records else ""):
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            self._size += len(record)
            self._num_records += 1
        except BaseException:
            if self._is_regular:
                os.ftruncate(self._file, self._size)
            raise

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if self._is_regular:
                with self._named():
                    os.fsync(self._file)
                if not isinstance(error, Exception):
                    self._check_unharmed()
        finally:
            os.close(self._file)

    def _check_unharmed(self) -> None:
        written = os.fstat(self._file)
        try:
            there = self._path.stat()
        except FileNotFoundError:
            raise FileNotFoundError(f"{self._title}: was deleted while the job ran") from None
        if not os.path.samestat(there, written):
            raise FileExistsError(f"{self._title}: was replaced while the job ran")
        if written.st_size != self._size:
            raise OSError(
                f"{self._title}: expected the {self._size:,} bytes that were written, got {written.st_size:,}: "
                "something else wrote to it"
            )

    @contextmanager
    def _named(self, note: str = "") -> Iterator[None]:
        """The operating system's errors, with the file's name."""
        try:
            yield
        except OSError as error:
            raise type(error)(f"{self._title}: {error.strerror}{note}") from error


def lock(file: int, title: str) -> None:
    """Keeps other jobs from the file until it is closed, where its file system has locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(f"{title}: another job is writing it") from None
    except OSError:
        pass


def write_file(name: str, path: Path, content: bytes, *, overwrite: bool) -> None:
    with RecordFile(name, path, overwrite=overwrite) as file:
        file.empty()
        file.write(content)
