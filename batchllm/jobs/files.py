"""The files that a job writes: nothing is replaced unasked, and what was written is whole and on disk.

A file is its device and inode: hard links, symbolic links and bind mounts are more names of one file.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from batchllm.jobs.inputs import STANDARD_INPUT

STDIN, STDOUT, STDERR = 0, 1, 2
SYNC_SECONDS = 1.0  # between two fsyncs of a file
FileId = tuple[int, int, str]  # device, inode, ""; of a file that is still to be made, its directory's, and its name


def check_files(
    input: Path | str,
    outputs: Mapping[str, Path | None],
    *,
    overwrite: bool,
    others: Mapping[str, Iterable[Path]] | None = None,
    replaced: Mapping[str, Path | None] | None = None,
) -> None:
    """Raises OSError or ValueError if the input is missing, an output cannot be written, may not be replaced or is
    another job's, or two of them are the same file. Changes nothing, and opens no pipe.

    others: files read beside the input, by what they are; those of one kind may be the same file.
    replaced: outputs whose writer checks what they hold.
    """
    names: dict[FileId, str] = {}
    claim(names, "standard error", STDERR)
    if isinstance(input, Path):
        if input != STANDARD_INPUT and not input.exists():
            raise FileNotFoundError(f"input {str(input)!r}: no such file")
        claim(names, "input", STDIN if input == STANDARD_INPUT else input)
    for name, paths in (others or {}).items():
        for file_id in map(identify, paths):
            if file_id:
                names.setdefault(file_id, name)
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
    """Raises ValueError if the file already has a name. Terminals and /dev/null may serve as several files."""
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
    """A file that only this job writes, record by record; a pipe or a device is written directly.

    Opening changes nothing; `cut` does, so that a job can open all its files before it replaces one. What was written
    is on disk SYNC_SECONDS later, if `write` or `sync_if_due` is called then, and when the context is left. Leaving
    also checks that the path still holds what was written.

    Raises OSError that names the file: on opening, if it is another job's or, without overwrite, not empty; on writing,
    with the file cut back to its whole records; on leaving, if the file was deleted, replaced or written by others.
    """

    def __init__(self, name: str, path: Path, *, overwrite: bool) -> None:
        self._title = f"{name} {str(path)!r}"
        self._path = path
        self._num_records = 0
        self._next_sync_s = 0.0
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

    def cut(self, num_bytes: int = 0) -> None:
        """Keeps only the first num_bytes of the file, durably."""
        if self._is_regular:
            os.ftruncate(self._file, num_bytes)
            self.sync()
            sync_directory(self._path)
        self._size = num_bytes

    def remove(self) -> None:
        """Marks the file as done; nothing more is written to it."""
        self._path.unlink()
        self._is_regular = False

    def replace(self, content: bytes) -> None:
        """Replaces the file by one with that content, atomically."""
        replace_file(self._path, content)
        old, self._file = self._file, os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        lock(self._file, self._title)
        os.close(old)
        self._size = len(content)

    def write(self, record: bytes) -> None:
        """Hands the whole record to the operating system, or raises and leaves none of it in the file."""
        try:
            written = os.write(self._file, record)
            while written < len(record):
                written += os.write(self._file, memoryview(record)[written:])
        except BaseException as error:
            if self._is_regular:
                os.ftruncate(self._file, self._size)
            with self._named(f"; the {self._num_records:,} lines before are whole" if self._num_records else ""):
                raise error
        self._size += len(record)
        self._num_records += 1
        self.sync_if_due()

    def sync_if_due(self) -> None:
        if time.monotonic() >= self._next_sync_s:
            self.sync()

    def sync(self) -> None:
        if self._is_regular:
            with self._named():
                os.fsync(self._file)
        self._next_sync_s = time.monotonic() + SYNC_SECONDS

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.sync()
            if self._is_regular and not isinstance(error, Exception):
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
    """Keeps other jobs from the file until it is closed, if its file system has locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(f"{title}: another job is writing it") from None
    except OSError:
        pass


def sync_directory(path: Path) -> None:
    """Puts a directory on disk, so that the creation or removal of its files survives a crash."""
    directory = os.open(Path(os.path.realpath(path)).parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def replacing(path: Path, title: str, note: str = "") -> Iterator[BinaryIO]:
    """A file to write, which replaces the one at `path` on leaving, durably and atomically.
    Raises OSError that begins with the title and ends with the note."""
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise type(error)(f"{title}: {error.strerror}{note}") from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path)


def replace_file(path: Path, content: bytes) -> None:
    with replacing(path, repr(str(path))) as file:
        file.write(content)


def write_file(name: str, path: Path, content: bytes, *, overwrite: bool) -> None:
    with RecordFile(name, path, overwrite=overwrite) as file:
        file.cut()
        file.write(content)
