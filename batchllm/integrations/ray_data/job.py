"""A job from a file of requests to a directory of answers, by replicas on a cluster; every line once.

    OUT/part-000000.jsonl ...   answers, one file per parcel: its replica writes there, and if that one dies, the
                                replica that takes over continues there
    OUT/errors.jsonl            lines without an answer, written by the driver
    OUT/manifest.json           which job it is

The driver reads and plans what no earlier run has answered, hands out parcels, and then compares the parts with the
plan. What is missing is handed out again in halves, and a line that alone ends its replica becomes an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from batchllm.integrations.ray_data.cluster import LOST, Replicas, connected, halved
from batchllm.integrations.ray_data.figures import ReplicaFigures
from batchllm.integrations.ray_data.parts import PartFiles
from batchllm.integrations.ray_data.reader import WeightlessReader
from batchllm.integrations.ray_data.reading import is_large, read_on_cluster
from batchllm.integrations.ray_data.replica import JobReplica, ParcelResult
from batchllm.jobs.answering import OnProgress
from batchllm.jobs.earlier import EarlierRuns
from batchllm.jobs.files import check_files, check_writable
from batchllm.jobs.finished import is_parquet
from batchllm.jobs.inputs import is_remote
from batchllm.jobs.job import run_options, what_to_ask
from batchllm.jobs.job_prompts import JobPrompts
from batchllm.jobs.line import LineError
from batchllm.jobs.manifest import Manifest
from batchllm.jobs.parcels import pack_lines, parcels_of, tokenized_job
from batchllm.jobs.run import (
    BatchFiles,
    JobInterrupted,
    JobSummary,
    RunningJob,
    deadline,
    find_manifest,
    fingerprint,
    read_prompts,
)
from batchllm.jobs.sources import open_source
from batchllm.models.config import model_files
from batchllm.options import EngineOptions

Parcel = list[int]  # lines of JobPrompts


def run_job_on_ray(
    source: str | Path,
    directory: str | Path,
    model: str | Path,
    *,
    ray: str,
    replicas: int,
    summary: Path | None = None,
    report: Path | None = None,
    metrics: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    template: str | None = None,
    completion: bool = False,
    url: str | None = None,
    body: str = "{}",
    limit: int | None = None,
    sample: int | None = None,
    retry_errors: bool = False,
    max_error_rate: float | None = None,
    time_limit_s: float | None = None,
    max_tokens: int = 256,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    log: Callable[[str], None] = print,
    **engine_options: Any,
) -> JobSummary:
    """Answers every line of `source` into a directory, like `run_job` into a file, with that many replicas.

    directory: made if missing; on storage that the driver and all nodes share, like the model.
    ray: an address, "auto" or "local", which starts Ray on this machine; ignored if the program is already connected.
    replicas: number of engines. Each has a GPU if `device` is "cuda", and num_threads CPUs, by default as many as let
        all of them fit.
    on_progress: is called after each parcel. The other options are those of `run_job`.

    Raises OSError or ValueError before anything is written; after that JobInterrupted for a KeyboardInterrupt and the
    time limit, OSError if the errors or the manifest cannot be written, ValueError if a part cannot be written, no
    replica starts or too many lines fail.
    """
    engine = EngineOptions(**engine_options)
    files = BatchFiles(
        source if is_remote(source) else Path(source),
        Path(directory),
        Path(directory) / "errors.jsonl",
        summary,
        overwrite,
        str(model),
        resume,
        report=report,
        metrics=metrics,
    )
    options = run_options(
        Path(model),
        vars(engine),
        what_to_ask(template, url, body, completion=completion),
        chat_max_tokens=max_tokens,
        seed=seed,
        retry_errors=retry_errors,
        max_error_rate=max_error_rate,
        time_limit_s=time_limit_s,
        limit=limit,
        sample=sample,
    )
    check_time = deadline(time_limit_s)
    check_directory(files)
    with ExitStack() as stack:
        lines = stack.enter_context(
            open_source(files.input, chat_max_tokens=max_tokens, ask=options.ask, limit=limit, sample=sample, seed=seed)
        )
        here = fingerprint(lines, files, options)
        manifest, earlier, parts = None, EarlierRuns(), None
        if resume and PartFiles.holds_something(files.output):
            parts = stack.enter_context(PartFiles(files.output, replaces=True))
            manifest = find_manifest(files, here)
            earlier = parts.read(manifest, retry_errors=retry_errors)
            if earlier.num_lines == manifest.num_lines:
                return JobSummary(len(earlier.answered), len(earlier.failed), {}, num_earlier=earlier.num_lines)
        log(f"reading {files.input}")
        reader = WeightlessReader(model, engine)
        stack.enter_context(connected(ray, replicas, engine.num_threads))
        if is_large(lines):
            prompts, errors = read_on_cluster(lines, reader.name, engine_options, earlier, options, check_time)
        else:
            prompts, errors = read_prompts(lines, reader, reader.sampling_defaults, earlier, options, check_time)
        manifest = manifest or Manifest.new(here, prompts.num_lines, errors)
        job = RunningJob(manifest, earlier, options)
        job.check_error_rate(errors)
        tokenized = tokenized_job(prompts, reader.limits)
        parcels = [parcel.tolist() for parcel in parcels_of(tokenized, reader.config, reader.device, replicas)]
        pool = Replicas.of(replicas, engine.num_threads, engine.device)
        log(f"{len(prompts):,} prompts in {len(parcels):,} parcels for {replicas:,} replicas")
        parts = parts or stack.enter_context(PartFiles(files.output, replaces=overwrite))
        figures = ReplicaFigures(tokenized, on_progress)
        try:
            job.begin(parts, errors)
            JobOnRay(job, parts, prompts, pool, figures, check_time).answer(
                parcels,
                model=reader.name,
                directory=str(files.output.resolve()),
                job_id=manifest.job_id,
                model_name=options.model_name,
                engine=engine_options | {"num_threads": pool.num_threads},
            )
        except KeyboardInterrupt as interrupt:
            raise JobInterrupted(f"the answers so far are in {files.output}; --resume goes on") from interrupt
        except ValueError as error:
            raise ValueError(f"{error}; the answers so far are in {files.output}; --resume goes on") from error
        job.count(parts.settle() - len(earlier.answered), 0, 0)
    return job.summary(figures.stats)


def check_directory(files: BatchFiles) -> None:
    """Raises OSError or ValueError for files that no job can run with. Changes none of them."""
    if files.resume and files.overwrite:
        raise ValueError("a job is resumed or overwritten, not both")
    directory, may_replace = files.output, files.overwrite or files.resume
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"output {str(directory)!r}: is a file; a job on Ray writes a directory")
    if is_parquet(directory):
        raise ValueError(
            f"output {str(directory)!r}: a job on Ray writes a directory, and `batchllm merge` a table of that"
        )
    if PartFiles.holds_something(directory) and not may_replace:
        raise FileExistsError(
            f"output {str(directory)!r}: holds answers; --overwrite replaces them, --resume continues their job"
        )
    outputs = {"summary": files.summary, "report": files.report}
    if directory.is_dir():
        outputs["errors"] = files.errors
    else:
        check_writable("output", directory)
    check_files(
        files.input,
        outputs,
        overwrite=may_replace,
        others={"model": model_files(files.model) if files.model else []},
        replaced={"metrics": files.metrics},
    )


class JobOnRay:
    """Hands out a job until each of its lines has an answer or an error."""

    def __init__(
        self,
        job: RunningJob,
        parts: PartFiles,
        prompts: JobPrompts,
        replicas: Replicas,
        figures: ReplicaFigures,
        check_time: Callable[[], None],
    ) -> None:
        self._job, self._parts, self._prompts, self._replicas = job, parts, prompts, replicas
        self._figures, self._check_time = figures, check_time

    def answer(self, parcels: list[Parcel], **constructor: Any) -> None:
        """constructor: arguments of JobReplica. Raises ValueError if no line can be answered or too many fail."""
        while parcels:
            numbered = dict(enumerate(parcels, start=self._parts.next_number()))
            stopped_by: dict[int, str] = {}
            failed: set[int | None] = set()  # numbers of lines
            for result in self._results(numbered, constructor):
                if result.fatal:
                    raise ValueError(result.fatal)
                for failure in result.failures:
                    failed.add(failure.line)
                    self._job.fail(failure)
                self._job.check_error_rate()
                self._job.count(0, result.num_other_model, result.num_cut)
                self._figures.add(result.stats)
                stopped_by[result.parcel] = result.stopped_by
            parcels = list(self._left(numbered, stopped_by, failed))

    def _results(self, numbered: dict[int, Parcel], constructor: dict[str, Any]) -> Iterator[ParcelResult]:
        def pack(parcel: tuple[int, Parcel]) -> dict[str, Any]:
            number, lines = parcel
            return {"number": number, "lines": pack_lines(self._prompts, lines)}

        return self._replicas.answer(list(numbered.items()), pack, self._check_time, JobReplica, **constructor)

    def _left(
        self, numbered: dict[int, Parcel], stopped_by: dict[int, str], failed: set[int | None]
    ) -> Iterator[Parcel]:
        """The lines of parcels that have neither answer nor error, to be handed out again. A line that was handed out
        alone gets an error."""
        for number, parcel in numbered.items():
            done = self._parts.answered(number) | failed
            left = [line for line in parcel if self._prompts.line_number(line) not in done]
            if left and len(parcel) == 1:
                reason = stopped_by.get(number) or LOST
                request = self._prompts.request(left[0])
                self._job.fail(LineError("no_answer", None, reason).at(request.line, request.custom_id))
                self._job.check_error_rate()
            elif left:
                yield from halved(left)
