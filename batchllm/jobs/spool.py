"""The token ids of a job's prompts as one array, which moves to a file once it is large."""

from __future__ import annotations

import errno
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, overload

import numpy as np

SPOOL_BYTES = 1 << 28  # of token ids that stay in memory
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def naming_full_disk(title: str) -> Iterator[None]:
    """The error for a temporary file that cannot be written: its purpose, its place, and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = f"of which {tempfile.gettempdir()} holds a copy: {error.strerror}"
        raise OSError(f"{title}, {where}; TMPDIR names another directory") from None


class PromptSpool(Sequence[Any]):
    """Prompts are appended, then read as int32 views of one array. The system may drop unused pages of it from
    memory."""

    def __init__(self, spool_bytes: int = SPOOL_BYTES) -> None:
        self._spool_bytes = spool_bytes
        self._indptr = array("q", [0])
        self._last = array("i")  # those not yet in the file
        self._file: IO[bytes] | None = None
        self._tokens: np.ndarray | None = None  # int32 [indptr[-1]], once one has been read

    def append(self, token_ids: Iterable[int]) -> None:
        assert self._tokens is None
        before = len(self._last)
        self._last.extend(token_ids)
        self._indptr.append(self._indptr[-1] + len(self._last) - before)
        if len(self._last) * self._last.itemsize > self._spool_bytes:
            self._spool()

    @property
    def tokens(self) -> np.ndarray:
        """int32 [sum of lengths]: the prompts one after the other. Nothing is appended after the first read."""
        if self._tokens is None:
            self._tokens = self._whole()
        return self._tokens

    @property
    def indptr(self) -> np.ndarray:
        """int64 [num_prompts + 1]"""
        return np.array(self._indptr, np.int64)

    def __len__(self) -> int:
        return len(self._indptr) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self._indptr) - 1:
            raise IndexError(index)
        prompt: np.ndarray = self.tokens[self._indptr[index] : self._indptr[index + 1]]
        return prompt

    def _spool(self) -> None:
        self._file = self._file or tempfile.TemporaryFile(prefix="batchllm-")  # noqa: SIM115, closed with this object
        with naming_full_disk("token ids of the prompts"):
            self._last.tofile(self._file)
            self._file.flush()
        self._last = array("i")

    def _whole(self) -> np.ndarray:
        if self._file is None:
            return np.frombuffer(self._last, np.int32)
        self._spool()
        return np.asarray(np.memmap(self._file, np.int32, "r"))
