"""What earlier runs of a job left in its files: which lines have an answer or an error, and where the whole records
end."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from batchllm.jobs.line import DUPLICATE_ID
from batchllm.jobs.manifest import Manifest
from batchllm.jobs.openai_records import record_opening

LINE_DIGITS = 16


class _ErrorRecord(msgspec.Struct):
    error: dict[str, Any]


@dataclass
class EarlierRuns:
    """Empty before the first run."""

    answered: array[int] = field(default_factory=lambda: array("q"))  # numbers of lines
    failed: array[int] = field(default_factory=lambda: array("q"))
    output_bytes: int = 0  # of whole records
    errors_bytes: int = 0
    errors_kept: bytes | None = None  # what stays of the errors file if some lines are to be tried again

    @property
    def num_lines(self) -> int:
        return len(self.answered) + len(self.failed)

    def done(self) -> bytes:
        """1 at the numbers of lines that have an answer or an error. Raises ValueError if a line has two."""
        if not self.num_lines:
            return b""
        lines = np.concatenate(
            [np.frombuffer(numbers, np.int64) for numbers in (self.answered, self.failed) if numbers]
        )
        counts = np.bincount(lines)
        if counts.max() > 1:
            raise ValueError(f"expected one record per line, got {counts.max()} of line {counts.argmax()}")
        return counts.astype(np.uint8).tobytes()


def read_earlier_runs(output: Path, errors: Path, manifest: Manifest, *, retry_errors: bool) -> EarlierRuns:
    """retry_errors: lines with an error count as not done, except those whose custom_id is another line's.

    Raises ValueError for a file that holds anything other than records of this job, or has lost some.
    """
    earlier = EarlierRuns()
    earlier.output_bytes = read_answered(output, manifest.job_id, earlier.answered)
    read_failed(errors, manifest, earlier, retry_errors=retry_errors)
    return earlier


def read_answered(output: Path, job_id: str, answered: array[int]) -> int:
    """Adds the numbers of the lines that have an answer in the file. Returns the bytes of its whole records."""
    num_bytes = 0
    for line, record in whole_records("output", output, job_id):
        answered.append(line)
        num_bytes += len(record)
    return num_bytes


def read_failed(errors: Path, manifest: Manifest, earlier: EarlierRuns, *, retry_errors: bool) -> None:
    """Adds the errors in that file. Raises ValueError like read_earlier_runs."""
    num_duplicates = 0
    kept: list[bytes] = []
    for line, record in whole_records("errors", errors, manifest.job_id):
        is_duplicate = msgspec.json.decode(record, type=_ErrorRecord).error.get("code") == DUPLICATE_ID
        num_duplicates += is_duplicate
        earlier.errors_bytes += len(record)
        if is_duplicate or not retry_errors:
            earlier.failed.append(line)
        if is_duplicate and retry_errors:
            kept.append(record)
    if retry_errors:
        earlier.errors_kept = b"".join(kept)
    if earlier.answered and num_duplicates < manifest.num_duplicates:
        raise ValueError(
            f"errors {str(errors)!r}: expected {manifest.num_duplicates:,} errors for repeated custom_ids, got "
            f"{num_duplicates:,}; without them their lines would be answered"
        )


def whole_records(name: str, path: Path, job_id: str) -> Iterator[tuple[int, bytes]]:
    """Yields line numbers and records, up to a record that a crash has torn: it has no end, or a hole that was never
    written and reads as zeros.

    Raises ValueError for a line that is neither a record of this job nor torn.
    """
    if not path.exists():
        return
    opening = record_opening(job_id)
    begin, end = len(opening), len(opening) + LINE_DIGITS
    with path.open("rb") as file:
        for place, record in enumerate(file, start=1):
            is_whole = record.endswith(b"\n") and b"\0" not in record
            if is_whole and record.startswith(opening):
                yield int(record[begin:end], 16), record
            elif b"\0" in record or (not is_whole and opening.startswith(record[:begin])):
                return
            else:
                raise ValueError(f"{name} {str(path)!r}: line {place} is not a record of the job in its manifest")
