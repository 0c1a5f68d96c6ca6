"""Where a job's records go: answers and errors as they come, and the manifest that says which job they belong to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from batchllm.jobs.earlier import EarlierRuns
from batchllm.jobs.files import RecordFile
from batchllm.jobs.finished import is_parquet, write_finished
from batchllm.jobs.line import BatchRequest, LineError
from batchllm.jobs.manifest import Manifest, write_manifest
from batchllm.jobs.openai_records import answer_record, error_record
from batchllm.outputs import RequestOutput


@dataclass(frozen=True)
class RecordFiles:
    output: Path
    errors: Path | None  # None: errors are logged
    ordered: bool = False  # whether the output has the order of the lines

    @property
    def journal(self) -> Path:
        """Where answers are written as they come: a journal, or the output itself."""
        if not self.ordered and not is_parquet(self.output):
            return self.output
        return self.output.with_name(f"{self.output.name}.journal.jsonl")

    @property
    def is_finished(self) -> bool:
        """Whether the journal has become the output."""
        return self.journal != self.output and self.output.exists() and not self.journal.exists()

    @property
    def is_resumable(self) -> bool:
        """Whether there are files that a later run could continue."""
        return is_file(self.output) and self.errors is not None and is_file(self.errors)


def is_file(path: Path) -> bool:
    """Whether that is or will be a file, not a pipe or a device."""
    return path.is_file() or not path.exists()


class Sink:
    """The files of a running job, open and locked. None of them is changed before `begin`.

    Raises OSError that names the file, like RecordFile.
    """

    def __init__(self, files: RecordFiles, model_name: str, log: Callable[[str], None], *, replaces: bool) -> None:
        """replaces: files that are not empty. log: gets the errors if there is no file for them."""
        self._files, self._model_name, self._log = files, model_name, log
        self._job_id = ""
        with ExitStack() as stack:
            self._output = stack.enter_context(RecordFile("output", files.journal, overwrite=replaces))
            self._errors = None
            if files.errors:
                self._errors = stack.enter_context(RecordFile("errors", files.errors, overwrite=replaces))
            self._stack = stack.pop_all()

    def begin(self, manifest: Manifest, earlier: EarlierRuns) -> None:
        """Keeps the whole records of earlier runs. Another job's content is removed before the manifest is written: a
        crash between the two leaves empty files, which any job may use."""
        self._job_id = manifest.job_id
        self._output.cut(earlier.output_bytes)
        if self._errors:
            if earlier.errors_kept is None:
                self._errors.cut(earlier.errors_bytes)
            else:
                self._errors.replace(earlier.errors_kept)
        if self._files.journal != self._files.output:
            self._files.output.unlink(missing_ok=True)
        if self._files.is_resumable:
            write_manifest(self._files.output, manifest)

    def error(self, error: LineError) -> None:
        if self._errors:
            self._errors.write(error_record(error, self._job_id))
        else:
            self._log(f"line {error.line}: {error}")

    def answer(self, request: BatchRequest, outputs: list[RequestOutput]) -> None:
        self._output.write(answer_record(request, outputs, self._model_name, self._job_id))

    def copy(self, record: bytes, *, is_error: bool) -> None:
        """A record of this job that was made elsewhere; an error needs a file for errors."""
        file = self._errors if is_error else self._output
        assert file
        file.write(record)

    def finish(self) -> None:
        """Every line has an answer or an error."""
        if self._files.journal != self._files.output:
            self.sync()
            write_finished(self._files.journal, self._files.output, self._job_id, ordered=self._files.ordered)
            self._output.remove()

    def sync(self) -> None:
        """Puts what was written on disk."""
        for file in (self._errors, self._output):
            if file:
                file.sync()

    def sync_if_due(self) -> None:
        for file in (self._errors, self._output):
            if file:
                file.sync_if_due()

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)
