"""A job from an input file to an output file: every line is answered, or reported, exactly once.

An answer is written as its request completes, so an interrupted job keeps what it has, and a later run continues from
there."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from batchllm import __version__
from batchllm.engine.recorder import RunRecorder
from batchllm.garbage import set_aside
from batchllm.jobs.answering import OnProgress, answers, is_cut, what_is_wrong
from batchllm.jobs.earlier import EarlierRuns, read_earlier_runs, whole_records
from batchllm.jobs.figures import leave_figures
from batchllm.jobs.files import check_files
from batchllm.jobs.finished import check_library
from batchllm.jobs.job_prompts import JobPrompts
from batchllm.jobs.line import BatchRequest, LineError
from batchllm.jobs.manifest import (
    Fingerprint,
    Manifest,
    differences,
    fingerprint_model,
    manifest_path,
    read_manifest,
)
from batchllm.jobs.reading import PromptReader, TokenizedLine, tokenized
from batchllm.jobs.sinks import RecordFiles, Sink, is_file
from batchllm.jobs.sources import Ask, Source, open_source
from batchllm.models.config import model_files
from batchllm.outputs import JobProgress, RequestOutput
from batchllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from batchllm.llm import LLM

KNOWN_PARAMS = 1024  # that lines may share


@dataclass(frozen=True)
class BatchFiles:
    input: Path | str  # str: of a remote file
    output: Path
    errors: Path | None  # None: errors are logged
    summary: Path | None = None
    overwrite: bool = False  # of files that are not empty
    model: str | None = None  # a directory, whose files must differ from all others
    resume: bool = False  # the job that output and errors belong to; starts it if they are empty
    ordered: bool = False  # the output has the order of the lines
    figures: Path | None = None  # what a report needs beside the answers
    report: Path | None = None
    metrics: Path | None = None

    @property
    def records(self) -> RecordFiles:
        return RecordFiles(self.output, self.errors, self.ordered)

    def check(self) -> None:
        """Raises OSError or ValueError for files that no job can run with. Changes none of them."""
        if self.resume and self.overwrite:
            raise ValueError("a job is resumed or overwritten, not both")
        if self.resume and not self.records.is_resumable:
            raise ValueError(f"output {str(self.output)!r}: only files are resumed, one for answers and one for errors")
        if self.records.journal != self.output and not is_file(self.output):
            raise ValueError(f"output {str(self.output)!r}: only a file can be Parquet or ordered")
        check_library(self.output)
        outputs = {"output": self.output, "errors": self.errors, "summary": self.summary}
        outputs |= {"figures": self.figures, "report": self.report}
        if self.records.journal != self.output:
            outputs["journal"] = self.records.journal
        inputs = model_files(self.model) if self.model else []
        try:
            check_files(
                self.input,
                outputs,
                overwrite=self.overwrite or self.resume,
                others={"model": inputs},
                replaced={"metrics": self.metrics},
            )
        except FileExistsError as error:
            if manifest_path(self.output).exists():
                raise FileExistsError(f"{error}, --resume continues its job") from None
            raise


def errors_beside(output: Path, *, resume: bool = False) -> Path | None:
    """OUT.errors.jsonl for OUT.jsonl; None for a pipe or a device.

    Raises FileExistsError if that file is not empty and the output does not exist, because OUT.txt has the same errors
    file. A resumed job recognises its errors."""
    if not has_neighbours(output):
        return None
    errors = output.with_suffix(".errors.jsonl")
    if not resume and not output.exists() and errors.is_file() and errors.stat().st_size:
        raise FileExistsError(
            f"errors {str(errors)!r}: is not empty, and {str(output)!r} does not exist, so it may belong to another "
            "output; name another with --errors"
        )
    return errors


def figures_beside(output: Path) -> Path | None:
    """OUT.figures.json for OUT.jsonl; None for a pipe or a device."""
    return output.with_suffix(".figures.json") if has_neighbours(output) else None


def has_neighbours(output: Path) -> bool:
    directory = Path(os.path.realpath(output.parent))
    is_special = directory == Path("/dev") or Path("/proc") in (directory, *directory.parents)
    return not is_special and (output.is_file() or not output.exists())


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """model_name: in the answers.
    chat_max_tokens: for chat requests without a limit.
    seed: with the custom_id, makes the seed of a request without one.
    retry_errors: lines that have an error from an earlier run count as not done.
    max_error_rate: of all lines; the job ends when more than that share has an error. None: never.
    time_limit_s: after which the job ends itself, between two steps.
    answer_options: other options that answers depend on, for the manifest.
    ask, limit, sample: arguments of open_source.
    """

    model_name: str
    chat_max_tokens: int
    seed: int = 0
    retry_errors: bool = False
    max_error_rate: float | None = None
    time_limit_s: float | None = None
    answer_options: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    ask: Ask | None = None
    limit: int | None = None
    sample: int | None = None


@dataclass(frozen=True)
class JobSummary:
    """Counts for the whole job, including earlier runs, unless stated otherwise."""

    num_answered: int  # lines in the output file
    num_failed: int  # lines in the errors file
    stats: dict[str, Any]  # LLM.stats of this run; empty if nothing was left to do
    num_other_model: int = 0  # lines answered by this run that name another model than the one that ran
    num_cut: int = 0  # lines answered by this run with a completion that ended at the model's context length
    num_earlier: int = 0  # lines that earlier runs answered or reported


class JobInterrupted(KeyboardInterrupt):
    """A KeyboardInterrupt, its cause, stopped the running job. The message says where the answers so far are."""


class OutOfTime(KeyboardInterrupt):
    """The time limit, which stops a job like Ctrl-C."""


def run_batch_file(
    files: BatchFiles,
    load_llm: Callable[[], LLM],
    options: RunOptions,
    *,
    on_progress: OnProgress | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> JobSummary:
    """Answers every line of files.input. No file is opened before the model is loaded, or replaced before it answers.
    The files of a resumed job are locked at once.

    log: gets the errors if there is no file for them.

    Raises OSError or ValueError before anything is written, and OSError if an output fails; JobInterrupted for a
    KeyboardInterrupt after that; ValueError if too many lines fail.
    """
    check_time = deadline(options.time_limit_s)
    files.check()
    with ExitStack() as stack:
        source = stack.enter_context(
            open_source(
                files.input,
                chat_max_tokens=options.chat_max_tokens,
                ask=options.ask,
                limit=options.limit,
                sample=options.sample,
                seed=options.seed,
            )
        )
        sink, manifest, earlier = None, None, EarlierRuns()
        if files.resume and files.records.is_finished:
            return find_finished(files, fingerprint(source, files, options), options)
        if files.resume and is_begun(files):
            sink = stack.enter_context(Sink(files.records, options.model_name, log, replaces=True))
            manifest, earlier = find_earlier_runs(files, fingerprint(source, files, options), options.retry_errors)
            if earlier.num_lines == manifest.num_lines:
                if files.records.journal != files.output:
                    sink.begin(manifest, earlier)
                    sink.finish()
                return JobSummary(len(earlier.answered), len(earlier.failed), {}, num_earlier=earlier.num_lines)
        llm = load_llm()
        with set_aside():
            prompts, errors = read_prompts(source, llm, llm.sampling_defaults, earlier, options, check_time)
        if manifest is None:
            manifest = Manifest.new(fingerprint(source, files, options), prompts.num_lines, errors)
        job = RunningJob(manifest, earlier, options)
        job.check_error_rate(errors)
        if sink is None:
            sink = stack.enter_context(Sink(files.records, options.model_name, log, replaces=files.overwrite))

        def on_step(progress: JobProgress) -> None:
            check_time()
            sink.sync_if_due()
            if on_progress:
                on_progress(progress)

        recorder = RunRecorder()
        results = answers(llm, prompts, on_step, recorder)
        first = list(itertools.islice(results, 1))  # proves that the engine works; until then nothing is replaced
        so_far = f"the answers so far are in {files.output}"
        if files.records.is_resumable:
            so_far += "; --resume goes on"
        try:
            job.begin(sink, errors)
            for request, outputs in itertools.chain(first, results):
                job.take(sink, request, outputs)
            sink.finish()
        except KeyboardInterrupt as interrupt:
            raise JobInterrupted(so_far) from interrupt
        except ValueError as error:
            raise ValueError(f"{error}; {so_far}") from error
        except OSError as error:
            if files.records.is_resumable:
                raise type(error)(f"{error}; {so_far}") from error
            raise
        finally:
            if files.figures:
                may_replace = files.overwrite or files.resume
                leave_figures(
                    files.figures, recorder, prompts, llm.stats, options.model_name, files.input, may_replace, log
                )
    return job.summary(llm.stats)


def deadline(time_limit_s: float | None) -> Callable[[], None]:
    """Raises OutOfTime once that many seconds have passed."""
    end_s = math.inf if time_limit_s is None else time.monotonic() + time_limit_s

    def check() -> None:
        if time.monotonic() >= end_s:
            raise OutOfTime

    return check


def fingerprint(source: Source, files: BatchFiles, options: RunOptions) -> Fingerprint:
    here: Fingerprint = {"batchllm": __version__, **source.fingerprint(), **options.answer_options}
    here |= {"max_tokens": options.chat_max_tokens, "seed": options.seed, "model": options.model_name}
    here |= {name: n for name, n in (("limit", options.limit), ("sample", options.sample)) if n is not None}
    return here | (fingerprint_model(files.model) if files.model else {})


def is_begun(files: BatchFiles) -> bool:
    """Whether there is anything to lose."""
    paths = (files.output, files.records.journal, files.errors)
    return any(path.exists() and path.stat().st_size for path in paths if path)


def find_earlier_runs(files: BatchFiles, here: Fingerprint, retry_errors: bool) -> tuple[Manifest, EarlierRuns]:
    """Raises ValueError like `find_manifest` and `read_earlier_runs`."""
    assert files.errors is not None
    manifest = find_manifest(files, here)
    return manifest, read_earlier_runs(files.records.journal, files.errors, manifest, retry_errors=retry_errors)


def find_finished(files: BatchFiles, here: Fingerprint, options: RunOptions) -> JobSummary:
    """The summary of a job whose journal has become the output. Raises ValueError like `find_manifest`."""
    assert files.errors is not None
    manifest = find_manifest(files, here)
    if options.retry_errors:
        raise ValueError(f"output {str(files.output)!r}: is finished; its lines with errors are not tried again")
    num_failed = sum(1 for _ in whole_records("errors", files.errors, manifest.job_id))
    return JobSummary(manifest.num_lines - num_failed, num_failed, {}, num_earlier=manifest.num_lines)


def find_manifest(files: BatchFiles, here: Fingerprint) -> Manifest:
    """Raises ValueError if the files are another job's, naming what differs."""
    manifest = read_manifest(files.output)
    title = f"output {str(files.output)!r}"
    if manifest is None:
        raise ValueError(f"{title}: there is no {manifest_path(files.output).name!r} that says which job it belongs to")
    if found := differences(manifest.fingerprint, here):
        raise ValueError(f"{title}: belongs to another job: {'; '.join(found)}")
    return manifest


def read_prompts(
    source: Source,
    reader: PromptReader,
    sampling_defaults: Mapping[str, Any],
    earlier: EarlierRuns,
    options: RunOptions,
    check_time: Callable[[], None],
) -> tuple[JobPrompts, list[LineError]]:
    """Every line that is not done, as prompts or as an error."""
    lines = with_defaults(source.requests(earlier.done()), sampling_defaults)
    return collected(tokenized(lines, reader, seed=options.seed), options, check_time)


def collected(
    lines: Iterable[TokenizedLine | LineError], options: RunOptions, check_time: Callable[[], None]
) -> tuple[JobPrompts, list[LineError]]:
    """The lines, up to the first error if options allow none."""
    prompts = JobPrompts()
    errors: list[LineError] = []
    for line in lines:
        check_time()
        if isinstance(line, LineError):
            errors.append(line)
            if options.max_error_rate == 0:
                break
        else:
            prompts.add(line)
    return prompts, errors


def with_defaults(
    lines: Iterable[BatchRequest | LineError], defaults: Mapping[str, Any]
) -> Iterator[BatchRequest | LineError]:
    """Lines that share their parameters share what is derived from them."""
    known: dict[int, tuple[SamplingParams, SamplingParams]] = {}  # by id of the parameters, which are kept
    for line in lines:
        if isinstance(line, BatchRequest):
            if len(known) >= KNOWN_PARAMS:
                known.clear()
            given, params = known.get(id(line.params)) or (line.params, line.params_with(defaults))
            known[id(given)] = given, params
            line.params = params
        yield line


class ErrorSink(Protocol):
    """The part of `Sink` that takes errors."""

    def begin(self, manifest: Manifest, earlier: EarlierRuns) -> None: ...
    def error(self, error: LineError) -> None: ...
    def sync(self) -> None: ...


class RunningJob:
    """Who has what of a job."""

    _sink: ErrorSink

    def __init__(self, manifest: Manifest, earlier: EarlierRuns, options: RunOptions) -> None:
        self._manifest, self._earlier, self._options = manifest, earlier, options
        self._num_answered, self._num_failed = len(earlier.answered), len(earlier.failed)
        self._num_other_model = self._num_cut = 0

    def check_error_rate(self, errors: Sequence[LineError] = ()) -> None:
        """Raises ValueError if these and the reported errors are more than allowed."""
        num_failed, rate = self._num_failed + len(errors), self._options.max_error_rate
        if rate is None or num_failed <= rate * self._manifest.num_lines:
            return
        which = f" (the first here: line {errors[0].line}: {errors[0]})" if errors else ""
        if rate == 0:  # no further line was read
            raise ValueError(f"a line failed{which}, and none may fail")
        num_lines = self._manifest.num_lines
        raise ValueError(f"{num_failed:,} of {num_lines:,} lines failed{which}, and at most {rate:.2%} may fail")

    def begin(self, sink: ErrorSink, errors: list[LineError]) -> None:
        self._sink = sink
        sink.begin(self._manifest, self._earlier)
        for error in errors:
            self.fail(error)
        sink.sync()  # as Manifest.num_duplicates requires

    def take(self, sink: Sink, request: BatchRequest, outputs: list[RequestOutput]) -> None:
        """Writes the answer to that sink, or its error."""
        if error := what_is_wrong(request, outputs):
            self.fail(error)
            self.check_error_rate()
            return
        sink.answer(request, outputs)
        self.count(1, request.names_another(self._options.model_name), is_cut(outputs))

    def count(self, num_answered: int, num_other_model: int, num_cut: int) -> None:
        """Counts of the written answers."""
        self._num_answered += num_answered
        self._num_other_model += num_other_model
        self._num_cut += num_cut

    def fail(self, error: LineError) -> None:
        self._sink.error(error)
        self._num_failed += 1

    def summary(self, stats: dict[str, Any]) -> JobSummary:
        counts = (self._num_other_model, self._num_cut, self._earlier.num_lines)
        return JobSummary(self._num_answered, self._num_failed, stats, *counts)
