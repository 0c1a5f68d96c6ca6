"""Merges the answers of a job's shards into what `run` would have left for the whole job."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from batchllm.jobs.earlier import LINE_DIGITS, EarlierRuns, whole_records
from batchllm.jobs.files import check_files, lock
from batchllm.jobs.finished import check_library
from batchllm.jobs.line import DUPLICATE_ID, BatchRequest, LineError
from batchllm.jobs.manifest import Fingerprint, Manifest, differences, manifest_path, read_manifest
from batchllm.jobs.openai_records import ID_PREFIX, record_opening
from batchllm.jobs.parts import answer_paths, errors_path
from batchllm.jobs.sinks import RecordFiles, Sink
from batchllm.jobs.sources import Source, open_source

OF_A_TABLE = "template"  # in its fingerprint


@dataclass(frozen=True)
class MergedJob:
    """Counts of the job's lines. An open line is in no shard's files, and no error of it is known."""

    num_answered: int
    num_failed: int
    num_open: int


@dataclass(frozen=True)
class Shard:
    """A job over some of the whole job's lines."""

    output: Path
    errors: Path
    manifest: Manifest

    @property
    def common(self) -> Fingerprint:
        """What its manifest says about the whole job: everything except its lines."""
        own = ("limit", "sample")
        return {
            name: value
            for name, value in self.manifest.fingerprint.items()
            if name != "input" and not name.startswith("input ") and name not in own
        }


@dataclass
class JobLines:
    """The lines of the whole job: by custom_id those that can be answered, and the errors of the others."""

    line_of: dict[str, int] = field(default_factory=dict)
    errors: list[LineError] = field(default_factory=list)
    failed_ids: set[str | None] = field(default_factory=lambda: {None})

    @classmethod
    def of(cls, source: Source) -> JobLines:
        lines = cls()
        for line in source.requests():
            if isinstance(line, BatchRequest):
                lines.line_of[line.custom_id] = line.line
            else:
                lines.errors.append(line)
                lines.failed_ids.add(line.custom_id)
        return lines


class _Answer(msgspec.Struct):
    custom_id: str


def merge(input: Path, shards: Sequence[Path], files: RecordFiles, *, overwrite: bool) -> MergedJob:
    """Writes files.output and files.errors, and a manifest by which `run` recognises the job as its own.

    input: the whole job, in the OpenAI Batch format. shards: outputs of `run` for parts of its lines, cut in any way,
    with their errors beside them, or the directory of a job on a cluster. Open lines stay open: `run` with
    resume answers them. If files.output is a table or ordered, it is made once no line is open.

    Raises OSError or ValueError, before anything is written, for shards that are still being written, that are of
    different jobs, or that answer a line twice or one that is not in the input; and OSError if a file fails.
    """
    assert files.errors is not None
    outputs = {"output": files.output, "errors": files.errors}
    if files.journal != files.output:
        outputs["journal"] = files.journal
    check_library(files.output)
    answers = [path for shard in shards for path in answer_paths(shard)]
    check_files(input, outputs, overwrite=overwrite, others={"shard": answers})
    with ExitStack() as stack:
        found = [stack.enter_context(open_shard(path)) for path in shards]
        common = agreed(found)
        max_tokens = common.get("max_tokens")
        source = stack.enter_context(
            open_source(input, chat_max_tokens=max_tokens if isinstance(max_tokens, int) else 1)
        )
        lines = JobLines.of(source)
        manifest = Manifest.new(common | source.fingerprint(), len(lines.line_of), lines.errors)
        for _ in merged_records(found, lines, manifest.job_id):  # that all of them can be
            pass
        sink = stack.enter_context(Sink(files, "", log=print, replaces=overwrite))
        sink.begin(manifest, EarlierRuns())
        for error in lines.errors:
            sink.error(error)
        sink.sync()
        num_answered, num_failed = 0, len(lines.errors)
        for is_error, record in merged_records(found, lines, manifest.job_id):
            sink.copy(record, is_error=is_error)
            num_answered, num_failed = num_answered + (not is_error), num_failed + is_error
        job = MergedJob(num_answered, num_failed, manifest.num_lines - num_answered - num_failed)
        if not job.num_open:
            sink.finish()
        return job


@contextmanager
def open_shard(output: Path) -> Iterator[Shard]:
    """Locks the shard meanwhile. Raises OSError or ValueError for anything but a shard's output."""
    descriptor = os.open(errors_path(output) if output.is_dir() else output, os.O_RDONLY)
    try:
        lock(descriptor, f"shard {str(output)!r}")
        manifest = read_manifest(output)
        if manifest is None:
            raise ValueError(f"shard {str(output)!r}: there is no {manifest_path(output).name!r} beside it")
        if OF_A_TABLE in manifest.fingerprint:
            raise ValueError(f"shard {str(output)!r}: answers rows of a table; only lines of a batch file are merged")
        yield Shard(output, errors_path(output), manifest)
    finally:
        os.close(descriptor)


def agreed(shards: Sequence[Shard]) -> Fingerprint:
    """What all of them say about the whole job. Raises ValueError if they differ."""
    first, *others = shards
    for other in others:
        if found := differences(first.common, other.common):
            names = f"shards {str(first.output)!r} and {str(other.output)!r}"
            there_and_here = "; ".join(found)
            raise ValueError(f"{names}: belong to two jobs: {there_and_here}")
    return first.common


def merged_records(shards: Sequence[Shard], lines: JobLines, job_id: str) -> Iterator[tuple[bool, bytes]]:
    """Every shard's errors and answers, each as a record of the whole job, and whether it is an error. Errors that
    follow from the lines themselves are left out."""
    file_of: dict[int, Path] = {}

    def claim(custom_id: str, path: Path) -> str:
        """The job id in the records' ids."""
        line = lines.line_of.get(custom_id)
        if line is None:
            raise ValueError(f"shard {str(path)!r}: custom_id {custom_id!r} is not in the input")
        if line in file_of:
            both = f"{str(file_of[line])!r} and {str(path)!r}"
            raise ValueError(f"shards {both}: both have line {line} of the input, custom_id {custom_id!r}")
        file_of[line] = path
        return f"{job_id}{line:0{LINE_DIGITS}x}"

    for shard in shards:
        for _, record in whole_records("errors", shard.errors, shard.manifest.job_id):
            failed: dict[str, Any] = msgspec.json.decode(record)
            custom_id, error = failed["custom_id"], failed["error"]
            if custom_id in lines.failed_ids or error["code"] == DUPLICATE_ID:
                continue
            failed["id"] = ID_PREFIX + claim(custom_id, shard.errors)
            error["line"] = lines.line_of[custom_id]
            yield True, msgspec.json.encode(failed) + b"\n"
        end = len(record_opening(shard.manifest.job_id)) + LINE_DIGITS
        for path in answer_paths(shard.output):
            for _, record in whole_records("shard", path, shard.manifest.job_id):
                unique = claim(msgspec.json.decode(record, type=_Answer).custom_id, path)
                yield False, record.replace(record[end - len(unique) : end], unique.encode())
