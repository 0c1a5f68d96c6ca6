"""The command line: `batchllm run in.jsonl -o out.jsonl --model DIR`, `batchllm plan in.jsonl --model DIR`.

Everything heavy is imported inside the commands, so that `batchllm --help` answers at once.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer
from rich.console import Console

from batchllm.options import DEFAULTS
from batchllm.text import printable

PIPED_WIDTH = 140  # of tables that no terminal shows
EXIT_NOT_RUN, EXIT_SOME_LINES_FAILED, EXIT_OUT_OF_TIME, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 3, 124, 130, 143

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class RunDevice(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Levels(str, Enum):
    auto = "auto"
    none = "0"
    single = "1"


class GenerationConfig(str, Enum):
    auto = "auto"
    vllm = "vllm"


class DeviceName(str, Enum):
    a100 = "a100"
    h100 = "h100"
    h200 = "h200"
    cpu = "cpu"


INPUT_HELP = "Requests in the OpenAI Batch format; - is standard input."
RUN_INPUT_HELP = "Requests in the OpenAI Batch format, or a table with --template; - is standard input."
STANDARD_OUTPUT = Path("-")
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are not empty.", show_default=False)]

UNIT_BYTES = {"B": 1, **{f"{p}B": 1000**n for n, p in enumerate("KMGT", 1)}}
UNIT_BYTES |= {f"{p}iB": 1024**n for n, p in enumerate("KMGT", 1)}


def memory_size(text: str) -> int:
    """Bytes of 40GiB, 512MiB or 12.5GB."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?i?B)", text)
    if not match or match[2] not in UNIT_BYTES or not (size := int(float(match[1]) * UNIT_BYTES[match[2]])):
        raise typer.BadParameter(f"expected a size such as 40GiB, 512MiB or 12GB, got {text!r}")
    return size


def duration(text: str) -> float:
    """Seconds of a duration as Slurm writes it: minutes, MM:SS, HH:MM:SS, DD-HH, DD-HH:MM or DD-HH:MM:SS."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise typer.BadParameter(f"expected a duration such as 90 (minutes), 1:30:00 or 2-12:00:00, got {text!r}")
    days, *parts = (int(part) if part else 0 for part in match.groups())
    begins_with_hours = match[1] is not None or match[4] is not None
    hours, minutes, seconds = parts if begins_with_hours else (0, *parts[:2])
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def text_or_file(text: str) -> str:
    """The content of the file of that name, if there is one."""
    path = Path(text)
    return path.read_text(encoding="utf-8") if len(text) < 4096 and "{" not in text and path.is_file() else text


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a job as Ctrl-C does."""


@contextmanager
def exit_status(log: Console, when_interrupted: str = "") -> Iterator[None]:
    """Says in one line what ended a command early, and exits with its status. Import what is slow inside."""
    try:
        yield
    except (OSError, ValueError, MemoryError) as error:
        say(log, f"batchllm: {str(error) or 'out of memory'}", style="red")
        raise typer.Exit(EXIT_NOT_RUN) from None
    except KeyboardInterrupt as stop:
        from batchllm.jobs.run import OutOfTime

        cause = stop.__cause__ or stop
        word, status = "interrupted", EXIT_INTERRUPTED
        if isinstance(cause, Terminated):
            word, status = "terminated", EXIT_TERMINATED
        elif isinstance(cause, OutOfTime):
            word, status = "out of time", EXIT_OUT_OF_TIME
        say(log, f"batchllm: {word}{f'; {stop}' if stop.args else when_interrupted}")
        raise typer.Exit(status) from None


def console_of(stream: TextIO, *, piped_width: int | None = None) -> Console:
    """Prints what a terminal obeys to a terminal only, whatever the environment asks for."""
    is_terminal = stream.isatty()
    return Console(file=stream, force_terminal=is_terminal, width=None if is_terminal else piped_width)


def say(console: Console, text: str, style: str | None = None) -> None:
    """A line as it is, wrapped by the terminal alone, with nothing in it that a terminal obeys."""
    console.print(printable(text), style=style, highlight=False, markup=False, soft_wrap=True)


def print_version(wanted: bool) -> None:
    if wanted:
        from batchllm import __version__

        print(f"batchllm {__version__}")
        raise typer.Exit


@app.callback()
def batchllm(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Offline LLM inference for prompts that share prefixes."""


@app.command()
def run(
    input: Annotated[str, typer.Argument(metavar="IN.jsonl", help=RUN_INPUT_HELP)],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT.jsonl", help="Answers: lines, or a table (.parquet).")
    ],
    model: Annotated[str, typer.Option(help="Hugging Face model directory (or hub id).")],
    errors: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Lines without an answer.",
            show_default="OUT.errors.jsonl, or the log if OUT is no file",
        ),
    ] = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the job that OUT.jsonl belongs to, or begin it.")
    ] = False,
    ordered: Annotated[
        bool, typer.Option("--ordered", help="Answers in the order of the lines, once all are there.")
    ] = False,
    template: Annotated[
        str | None,
        typer.Option(metavar="TEXT|FILE", help="Jinja; makes a user's message of each row of a table: {{ column }}."),
    ] = None,
    completion: Annotated[
        bool, typer.Option("--completion", help="The template makes the prompt itself, and no message of a chat.")
    ] = False,
    body: Annotated[
        str, typer.Option(metavar="JSON", help='With --template: fields of every request, as {"temperature": 0}.')
    ] = "{}",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N lines.", show_default="all")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Only N lines at random.", show_default="all")] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="With --resume: try lines with an error again.")
    ] = False,
    max_error_rate: Annotated[
        float | None, typer.Option(min=0, max=1, help="End the job when more than that part of its lines failed.")
    ] = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="End the job at the first line that fails.")] = False,
    time_limit: Annotated[
        float | None,
        typer.Option(metavar="TIME", parser=duration, help="End the job by then: minutes or [D-]HH:MM:SS."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Limit of a chat answer that names none.")] = 256,
    seed: Annotated[int, typer.Option(help="Seeds, with its custom_id, each request that names no seed.")] = 0,
    levels: Annotated[
        Levels, typer.Option(help="Depth of prefix sharing: any (auto), a single level (1), none (0).")
    ] = Levels.auto,
    generation_config: Annotated[
        GenerationConfig,
        typer.Option(
            help="auto: the model's temperature, top_p, top_k, min_p and repetition_penalty where a line has none; "
            "vllm: 1, 1, 0, 0 and 1."
        ),
    ] = GenerationConfig.auto,
    allow_special_tokens: Annotated[
        bool, typer.Option("--allow-special-tokens", help="Special tokens in messages are no text.")
    ] = False,
    reasoning_tags: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="BEGIN END",
            help="Around what a model thinks before it answers.",
            show_default="<think> </think>, where the model has them",
        ),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="auto: bfloat16 where the CPU multiplies it.")] = Dtype.auto,
    device: Annotated[
        RunDevice, typer.Option(help="auto: the CPU, until the tests have run on a GPU.")
    ] = RunDevice.auto,
    kv_cache_tokens: Annotated[
        int | None, typer.Option(min=1, help="Size of the KV pool.", show_default="what fits in memory")
    ] = None,
    max_batch_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of one forward pass.")
    ] = DEFAULTS.max_batch_tokens,
    page_size: Annotated[int, typer.Option(min=1, help="Tokens of one KV page.")] = DEFAULTS.page_size,
    num_threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's")] = None,
    json_summary: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the final figures as JSON, too.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page about the job, as `batchllm report` does.")
    ] = None,
    metrics: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep figures for Prometheus there while the job runs.")
    ] = None,
) -> None:
    """Answer every line of a batch file.

    Lines: POST to /v1/chat/completions, /v1/completions or /v1/score. Answers are written as they complete, in any
    order; match them by custom_id. Without a limit of its own, a chat answer ends after --max-tokens and a completion
    after 16 tokens; without a temperature, top_p, top_k, min_p or repetition_penalty it has those of the model's
    generation_config.json. What a model thinks before it answers is the reasoning_content beside the content. An answer
    that the model's length ends before its limit has the finish_reason "length" and the stop_reason "max_model_len".

    Whatever ends a job, --resume goes on with it: no line is lost, and none is answered twice. Beside OUT.jsonl,
    OUT.jsonl.manifest.json says which job it is; another one is refused.

    Exit status, of the whole job: 0 every line was answered; 3 the job ran, but some lines failed (see --errors); 1 the
    job could not run, or its answers not be written, or too many lines failed; 2 wrong usage; 124 out of time
    (--time-limit), 130 interrupted and 143 terminated, with the answers so far in OUT.jsonl."""
    if retry_errors and not resume:
        raise typer.BadParameter("--retry-errors goes with --resume")
    if template is None and (completion or body != "{}"):
        raise typer.BadParameter("--completion and --body go with --template")
    if resume and overwrite:
        raise typer.BadParameter("give --resume or --overwrite, not both")
    log = console_of(sys.stderr)

    with exit_status(log, when_interrupted="; nothing was written"):
        from batchllm.jobs.files import is_standard_output
        from batchllm.jobs.job import run_job
        from batchllm.jobs.run import errors_beside, figures_beside
        from batchllm.reports.html import ReportFiles, write_report
        from batchllm.reports.metrics import keep_metrics
        from batchllm.reports.run_text import show_progress, summary_table, write_summary

        output = Path("/dev/stdout") if output == STANDARD_OUTPUT else output
        errors = errors or errors_beside(output, resume=resume)
        may_replace = overwrite or resume
        with (
            show_progress(log) as show,
            keep_metrics(metrics, show, overwrite=may_replace, log=lambda line: say(log, line)) as on_progress,
        ):
            summary = run_job(
                input,
                output,
                model,
                errors=errors,
                summary=json_summary,
                report=report,
                metrics=metrics,
                resume=resume,
                overwrite=overwrite,
                ordered=ordered,
                template=None if template is None else text_or_file(template),
                completion=completion,
                body=body,
                limit=limit,
                sample=sample,
                retry_errors=retry_errors,
                max_error_rate=0.0 if fail_fast else max_error_rate,
                time_limit_s=time_limit,
                max_tokens=max_tokens,
                seed=seed,
                on_progress=on_progress,
                log=lambda line: say(log, line),
                dtype=dtype.value,
                device=device.value,
                levels=None if levels is Levels.auto else int(levels.value),
                page_size=page_size,
                kv_cache_tokens=kv_cache_tokens,
                max_batch_tokens=max_batch_tokens,
                num_threads=num_threads,
                generation_config=generation_config.value,
                allow_special_tokens=allow_special_tokens,
                reasoning_tags=reasoning_tags or "auto",
            )
    if json_summary:
        try:
            write_summary(json_summary, summary, overwrite=may_replace)
        except OSError as error:  # the answers are there all the same
            say(log, f"batchllm: {error}", style="red")
    if report:
        try:
            write_report(ReportFiles(output, report, None, errors, figures_beside(output), may_replace))
        except (OSError, ValueError) as error:
            say(log, f"batchllm: {error}", style="red")
    holds_records = any(is_standard_output(path) for path in (output, errors, json_summary, report))
    (log if holds_records else console_of(sys.stdout)).print(summary_table(summary))
    if summary.num_failed:
        raise typer.Exit(EXIT_SOME_LINES_FAILED)


@app.command()
def plan(
    input: Annotated[Path, typer.Argument(metavar="IN.jsonl", help=INPUT_HELP)],
    model: Annotated[str, typer.Option(help="Model directory, its config.json, or a hub id. No weights are read.")],
    device: Annotated[DeviceName, typer.Option(help="What the model of time is for.")] = DeviceName.h100,
    kv_memory: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=memory_size,
            help="KV memory, as 40GiB, 512MiB or 12GB.",
            show_default="90% of what the weights leave of the device",
        ),
    ] = None,
    kv_cache_tokens: Annotated[
        int | None, typer.Option(min=1, help="KV memory in tokens instead.", show_default=False)
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Limit of a chat answer that names none.")] = 256,
    expected_output_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens that each answer is assumed to have, within its limit.", show_default="limit"),
    ] = None,
    max_batch_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of one forward pass.")
    ] = DEFAULTS.max_batch_tokens,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the token batches and the KV memory (.png, .svg, .pdf).")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every figure as JSON.")] = None,
    errors: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the lines that cannot run.")] = None,
    overwrite: Overwrite = False,
    shards: Annotated[int | None, typer.Option(min=1, help="Cut the job into so many files of equal cost.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where shards go.")] = None,
) -> None:
    """Tell what a job would gain, before a device is rented.

    The job is simulated under several policies; nothing is run, and times are those of a roofline model. Prompts of
    text need the model's tokenizer; prompts of token ids need only its config.json. A model that `run` refuses is
    planned where its sizes are known, and that is said.

    Exit status: 0 every line was planned; 3 some lines cannot run and were left out; 1 the job could not be planned,
    or a file not be written; 2 wrong usage; 130 interrupted; 143 terminated.
    """
    if kv_memory and kv_cache_tokens:
        raise typer.BadParameter("give --kv-memory or --kv-cache-tokens, not both")
    if (shards is None) != (output is None):
        raise typer.BadParameter("--shards N and --output DIR go together")
    log = console_of(sys.stderr)
    with exit_status(log):
        from batchllm.cli.plan import PlanFiles, plan_batch_file
        from batchllm.jobs.files import is_standard_output
        from batchllm.reports.plan_text import print_plan

        job_plan = plan_batch_file(
            PlanFiles(input, errors, plot, json, output, shards or 0, overwrite),
            model,
            device.value,
            kv_bytes=kv_memory,
            kv_tokens=kv_cache_tokens,
            chat_max_tokens=max_tokens,
            expected_output_tokens=expected_output_tokens,
            max_batch_tokens=max_batch_tokens,
            log=lambda line: say(log, line),
        )
    holds_records = any(is_standard_output(path) for path in (errors, plot, json))
    print_plan(console_of(sys.stderr if holds_records else sys.stdout, piped_width=PIPED_WIDTH), job_plan)
    if job_plan.failed_lines:
        raise typer.Exit(EXIT_SOME_LINES_FAILED)


class BestEffort:
    """A standard stream that drops what it cannot take: a closed pipe or a full disk under a log ends no job."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[..., object], *args: str) -> None:
        try:
            action(*args)
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)  # for what is buffered, too, which Python writes when it ends
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def best_effort(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed
        return open(os.devnull, "w")
    stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    return BestEffort(stream)  # type: ignore[return-value]


def terminate(*_: object) -> NoReturn:
    raise Terminated


def main() -> None:
    # Where a standard stream is closed, the next file opened would have its number, and hold what is meant for it.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout, sys.stderr = best_effort(sys.stdout), best_effort(sys.stderr)
    signal.signal(signal.SIGTERM, terminate)
    app()
