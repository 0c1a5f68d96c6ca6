"""What a person sees of a job: its progress while it runs, its figures when it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from batchllm.jobs.files import write_file
from batchllm.jobs.run import JobSummary, OnProgress
from batchllm.outputs import JobProgress

SECONDS_BETWEEN_LINES = 5.0
MIN_FRACTION_KNOWN = 0.01  # before that, the time left is a guess


@contextmanager
def show_progress(console: Console) -> Iterator[OnProgress]:
    """A bar on a terminal, a line now and then elsewhere."""
    if console.is_terminal:
        columns = (BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("starting", total=1.0)
            yield lambda progress: bar.update(
                task,
                completed=fraction_done(progress),
                description=progress_line(progress),
            )
        return

    next_line_s = 0.0

    def print_line(progress: JobProgress) -> None:
        nonlocal next_line_s
        if progress.elapsed_s >= next_line_s:
            next_line_s = progress.elapsed_s + SECONDS_BETWEEN_LINES
            line = progress_line(progress)
            console.print(line, soft_wrap=True, highlight=False, markup=False)

    yield print_line


def progress_line(progress: JobProgress) -> str:
    tokens_per_s = progress.output_tokens / max(progress.elapsed_s, 1e-9)
    saved = percent(progress.saved_prompt_tokens, progress.scheduled_prompt_tokens)
    done = fraction_done(progress)
    left = duration(progress.elapsed_s * (1 - done) / done) if done > MIN_FRACTION_KNOWN else "?"
    return (
        f"{progress.finished_requests:,}/{progress.num_requests:,} requests · {tokens_per_s:,.0f} output tokens/s · "
        f"{progress.saved_prompt_tokens:,} prefix tokens saved ({saved}) · {left} left"
    )


def fraction_done(progress: JobProgress) -> float:
    """By output alone: on most jobs it takes the time. Answers that end early make the rest go faster than said."""
    return progress.output_tokens / max(progress.output_tokens + progress.remaining_output_tokens, 1)


def write_summary(path: Path, summary: JobSummary, *, overwrite: bool) -> None:
    write_file("summary", path, msgspec.json.encode(summary) + b"\n", overwrite=overwrite)


def summary_table(summary: JobSummary) -> Table:
    table = Table(show_header=False, title="batchllm run", title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for name, value in summary_rows(summary):
        table.add_row(name, value)
    return table


def summary_rows(summary: JobSummary) -> Iterator[tuple[str, str]]:
    yield "lines answered", f"{summary.num_answered:,}"
    if summary.num_other_model:
        yield "  naming another model", f"{summary.num_other_model:,}"
    if summary.num_cut:
        yield "  cut at the model's length", f"{summary.num_cut:,}"
    yield "lines failed", f"{summary.num_failed:,}"
    if summary.num_earlier:
        yield "answered or failed in earlier runs", f"{summary.num_earlier:,}"
    stats: dict[str, Any] = summary.stats
    if not stats:  # nothing ran
        return
    prompt_tokens, computed = stats["prompt_tokens"], stats["computed_prompt_tokens"]
    seconds = dict(stats["seconds"])
    total_s, load_s = seconds.pop("total"), seconds.pop("load", 0.0)
    yield "prompt tokens", f"{prompt_tokens:,}"
    yield "  computed", f"{computed:,}"
    yield "  saved", percent(prompt_tokens - computed, prompt_tokens)
    yield "output tokens", f"{stats['output_tokens']:,}"
    yield "output tokens/s", f"{stats['output_tokens'] / max(total_s, 1e-9):,.1f}"
    yield "steps", f"{stats['steps']:,}"
    yield "preemptions", f"{stats['preemptions']:,}"
    yield "peak KV tokens", f"{stats['peak_kv_tokens']:,}"
    yield "wall time to load the model", f"{load_s:.2f} s"
    yield "wall time of the job", f"{total_s:.2f} s"
    for phase, phase_s in seconds.items():
        yield f"  {phase}", f"{phase_s:.2f} s"


def percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.1f}%"


def duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"
