"""The commands that answer every line of a file: their options, and how they run a job."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial, wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from batchllm.cli.app import EXIT_SOME_LINES_FAILED, exit_status
from batchllm.cli.console import console_of, say
from batchllm.cli.option_types import (
    STANDARD_OUTPUT,
    Backend,
    BackendOption,
    Dtype,
    Levels,
    MaxBatchTokens,
    Overwrite,
    Quantization,
    RunDevice,
    duration,
)
from batchllm.options import DEFAULTS

Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="OUT.jsonl", help="Answers: lines, or a table (.parquet).")
]
Model = Annotated[str, typer.Option(help="Hugging Face model directory (or hub id), or a .gguf file.")]


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Options that every command that answers lines has, as on the command line."""

    errors: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Lines without an answer.",
            show_default="OUT.errors.jsonl, or the log if OUT is not a file",
        ),
    ] = None
    overwrite: Overwrite = False
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the job that OUT.jsonl belongs to, or start it.")
    ] = False
    ordered: Annotated[
        bool, typer.Option("--ordered", help="Write answers in the order of the lines, once all are there.")
    ] = False
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the first N lines.", show_default="all")
    ] = None
    sample: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only N random lines.", show_default="all")] = (
        None
    )
    seed: Annotated[
        int, typer.Option(help="Seed of --sample and, with their custom_id, of requests without a seed.")
    ] = 0
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="With --resume: try lines that failed again.")
    ] = False
    max_error_rate: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="X", help="End the job when more than this share of its lines has failed."),
    ] = None
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="End the job at the first line that fails.")] = False
    time_limit: Annotated[
        float | None,
        typer.Option(metavar="TIME", parser=duration, help="End the job after this time: minutes or [D-]HH:MM:SS."),
    ] = None
    levels: Annotated[
        Levels, typer.Option(help="Depth of prefix sharing: any (auto), a single level (1), none (0).")
    ] = Levels.auto
    dtype: Annotated[
        Dtype,
        typer.Option(
            metavar="TYPE", help="float32, bfloat16 or auto: bfloat16 with --quantize or if the CPU multiplies it."
        ),
    ] = Dtype.auto
    quantize: Annotated[
        Quantization | None,
        typer.Option(help="Weights and activations in 8 bits, on a CPU.", show_default="those of the dtype"),
    ] = None
    device: Annotated[
        RunDevice,
        typer.Option(metavar="NAME", help="cpu, cuda or auto, which is the CPU until the tests have run on a GPU."),
    ] = RunDevice.auto
    backend: BackendOption = Backend.auto
    kv_cache_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Size of the KV pool.", show_default="what fits in memory")
    ] = None
    max_batch_tokens: MaxBatchTokens = DEFAULTS.max_batch_tokens
    page_size: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of one KV page.")] = DEFAULTS.page_size
    num_threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="CPU threads.", show_default="the CPUs it may use")
    ] = None
    json_summary: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the final figures as JSON.")] = (
        None
    )
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page about the job, like `batchllm report`.")
    ] = None
    metrics: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep current figures for Prometheus in this file.")
    ] = None

    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on a Ray cluster; local starts one here. The output is a directory on shared storage.",
        ),
    ] = None
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="With --ray: number of engines, each with its own GPU if --device is cuda."
        ),
    ] = None

    def check(self) -> None:
        if self.retry_errors and not self.resume:
            raise typer.BadParameter("--retry-errors goes with --resume")
        if self.resume and self.overwrite:
            raise typer.BadParameter("give --resume or --overwrite, not both")
        if (self.ray is None) != (self.replicas is None):
            raise typer.BadParameter("--ray ADDRESS and --replicas N go together")
        if self.ray is not None and self.errors:
            raise typer.BadParameter("--errors does not go with --ray: they are in OUT/errors.jsonl")
        if self.ray is not None and self.ordered:
            raise typer.BadParameter(
                "--ordered does not go with --ray; of what it leaves in OUT "
                "`batchllm merge IN.jsonl OUT -o ANSWERS.jsonl --ordered` makes one file"
            )


def with_job_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of JobOptions to a command, which gets them as one object, its last parameter."""
    *own, _ = signature(command, eval_str=True).parameters.values()
    hints = get_type_hints(JobOptions, include_extras=True)
    shared = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
        for field in fields(JobOptions)
    ]

    @wraps(command)
    def with_options(**given: Any) -> None:
        options = JobOptions(**{parameter.name: given.pop(parameter.name) for parameter in shared})
        options.check()
        command(**given, options=options)

    with_options.__signature__ = signature(command).replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    return with_options


def answer_lines(input: str, output: Path, model: str, options: JobOptions, **asked: Any) -> None:
    """Runs the job, shows its progress, and exits with its status. asked: further arguments of run_job."""
    log = console_of(sys.stderr)
    with exit_status(log, when_interrupted="; nothing was written"):
        from batchllm.jobs.files import is_standard_output
        from batchllm.jobs.job import run_job
        from batchllm.jobs.run import errors_beside, figures_beside
        from batchllm.reports.html import ReportFiles, write_report
        from batchllm.reports.metrics import keep_metrics
        from batchllm.reports.run_text import show_progress, summary_table, write_summary

        output = Path("/dev/stdout") if output == STANDARD_OUTPUT else output
        may_replace = options.overwrite or options.resume
        if options.ray is None or options.replicas is None:
            errors = options.errors or errors_beside(output, resume=options.resume)
            answer = partial(run_job, errors=errors, ordered=options.ordered)
        else:
            try:
                from batchllm.integrations.ray_data import run_job_on_ray
            except ImportError as error:
                raise ValueError(f"--ray: {error}") from None
            errors = output / "errors.jsonl"
            answer = partial(run_job_on_ray, ray=options.ray, replicas=options.replicas)
        with (
            show_progress(log) as show,
            keep_metrics(options.metrics, show, overwrite=may_replace, log=lambda line: say(log, line)) as on_progress,
        ):
            summary = answer(
                input,
                output,
                model,
                summary=options.json_summary,
                report=options.report,
                metrics=options.metrics,
                resume=options.resume,
                overwrite=options.overwrite,
                limit=options.limit,
                sample=options.sample,
                seed=options.seed,
                retry_errors=options.retry_errors,
                max_error_rate=0.0 if options.fail_fast else options.max_error_rate,
                time_limit_s=options.time_limit,
                on_progress=on_progress,
                log=lambda line: say(log, line),
                dtype=options.dtype.value,
                quantize=options.quantize.value if options.quantize else None,
                device=options.device.value,
                backend=options.backend.value,
                levels=None if options.levels is Levels.auto else int(options.levels.value),
                page_size=options.page_size,
                kv_cache_tokens=options.kv_cache_tokens,
                max_batch_tokens=options.max_batch_tokens,
                num_threads=options.num_threads,
                **asked,
            )
    if options.json_summary:
        try:
            write_summary(options.json_summary, summary, overwrite=may_replace)
        except OSError as error:  # the answers are written all the same
            say(log, f"batchllm: {error}", style="red")
    if options.report:
        try:
            lines = Path(input) if Path(input).is_file() else None
            write_report(ReportFiles(output, options.report, lines, errors, figures_beside(output), may_replace))
        except (OSError, ValueError) as error:
            say(log, f"batchllm: {error}", style="red")
    holds_records = any(is_standard_output(path) for path in (output, errors, options.json_summary, options.report))
    (log if holds_records else console_of(sys.stdout)).print(summary_table(summary))
    if summary.num_failed:
        raise typer.Exit(EXIT_SOME_LINES_FAILED)
