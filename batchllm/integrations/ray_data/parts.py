"""The directory of a job on a cluster: parts with answers, errors, and the manifest that says which job they belong
to."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from batchllm.jobs.earlier import EarlierRuns, read_answered, read_failed, whole_records
from batchllm.jobs.files import RecordFile
from batchllm.jobs.line import LineError
from batchllm.jobs.manifest import Manifest, write_manifest
from batchllm.jobs.openai_records import error_record
from batchllm.jobs.parts import errors_path, part_path, part_paths

IntArray = NDArray[np.int64]


class PartFiles:
    """The parts of a running job, locked by its driver's open errors file. Nothing is changed before `begin`.

    Raises OSError that names the file, like RecordFile."""

    def __init__(self, directory: Path, *, replaces: bool) -> None:
        """directory: made if missing. replaces: files that are not empty."""
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._errors_path = errors_path(directory)
        self._errors = RecordFile("errors", self._errors_path, overwrite=replaces)
        self._job_id = ""

    @staticmethod
    def holds_something(directory: Path) -> bool:
        """Whether there is anything to lose."""
        paths = [*part_paths(directory), errors_path(directory)]
        return any(path.exists() and path.stat().st_size for path in paths)

    def read(self, manifest: Manifest, *, retry_errors: bool) -> EarlierRuns:
        """What earlier runs of the job left. Raises ValueError like read_earlier_runs."""
        self._job_id = manifest.job_id
        lines, _ = distinct([lines for lines, _ in self._read().values()])
        earlier = EarlierRuns(answered=array("q", lines.tolist()))
        read_failed(self._errors_path, manifest, earlier, retry_errors=retry_errors)
        return earlier

    def begin(self, manifest: Manifest, earlier: EarlierRuns) -> None:
        """Keeps the whole records of earlier runs of the job; removes those of another job."""
        is_resumed = self._job_id == manifest.job_id
        self._job_id = manifest.job_id
        if is_resumed:
            self.settle()
        else:
            for path in part_paths(self._directory):
                path.unlink()
        if earlier.errors_kept is None:
            self._errors.cut(earlier.errors_bytes)
        else:
            self._errors.replace(earlier.errors_kept)
        write_manifest(self._directory, manifest)

    def error(self, error: LineError) -> None:
        self._errors.write(error_record(error, self._job_id))

    def sync(self) -> None:
        self._errors.sync()

    def next_number(self) -> int:
        """The number of the next new part."""
        paths = part_paths(self._directory)
        return int(paths[-1].stem.removeprefix("part-")) + 1 if paths else 0

    def answered(self, parcel: int) -> frozenset[int]:
        """The lines that have an answer in the part of that parcel."""
        lines = array("q")
        read_answered(part_path(self._directory, parcel), self._job_id, lines)
        return frozenset(lines)

    def settle(self) -> int:
        """Once all writing has ended, keeps one whole answer per line. Duplicates come from a replica that continued
        after Ray considered it dead. Returns the number of lines."""
        parts = self._read()
        lines, counts = distinct([lines for lines, _ in parts.values()])
        twice = frozenset(lines[counts > 1].tolist())
        seen: set[int] = set()
        for path, (mine, num_bytes) in parts.items():
            has_doubles = not twice.isdisjoint(mine)
            if has_doubles or path.stat().st_size > num_bytes:
                with RecordFile("part", path, overwrite=True) as part:
                    part.cut(num_bytes)
                    if has_doubles:
                        part.replace(b"".join(self._first_records(path, twice, seen)))
        return len(lines)

    def _read(self) -> dict[Path, tuple[array[int], int]]:
        """The line numbers of each part, and the bytes of its whole records."""
        parts = {}
        for path in part_paths(self._directory):
            lines = array("q")
            parts[path] = lines, read_answered(path, self._job_id, lines)
        return parts

    def _first_records(self, path: Path, twice: frozenset[int], seen: set[int]) -> Iterator[bytes]:
        """The records of a part, without duplicates of lines that earlier parts have."""
        for line, record in whole_records("part", path, self._job_id):
            if line not in seen:
                yield record
            if line in twice:
                seen.add(line)

    def __enter__(self) -> PartFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._errors.__exit__(kind, error, at)


def distinct(lines: list[array[int]]) -> tuple[IntArray, IntArray]:
    """The distinct numbers, and their counts."""
    return np.unique(
        np.concatenate([np.empty(0, np.int64), *(np.array(some, np.int64) for some in lines)]), return_counts=True
    )
