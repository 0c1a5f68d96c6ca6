"""A job as text for people: its progress while it runs, its figures when it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import exp
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table

from batchllm.jobs.answering import OnProgress
from batchllm.jobs.files import write_file
from batchllm.jobs.run import JobSummary
from batchllm.outputs import JobProgress

SECONDS_BETWEEN_LINES = 60.0
MIN_FRACTION_KNOWN = 0.01  # before that, the time left is a guess
MEMORY_OF_PACE = 0.1  # of the time since the start: older progress counts little


@contextmanager
def show_progress(console: Console) -> Iterator[OnProgress]:
    """A bar on a terminal, a line per minute elsewhere."""
    pace = Pace()
    if console.is_terminal:
        columns = (BarColumn(bar_width=20), TextColumn("{task.description}", markup=False, table_column=Column()))
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("starting", total=1.0)

            def move_bar(progress: JobProgress) -> None:
                line = progress_line(progress, pace.seconds_left(progress))
                bar.update(task, completed=fraction_done(progress), description=line)

            yield move_bar
        return

    next_line_s = 0.0

    def print_line(progress: JobProgress) -> None:
        nonlocal next_line_s
        seconds_left = pace.seconds_left(progress)
        if progress.elapsed_s >= next_line_s:
            next_line_s = progress.elapsed_s + SECONDS_BETWEEN_LINES
            line = progress_line(progress, seconds_left)
            console.print(line, soft_wrap=True, highlight=False, markup=False)

    yield print_line


def progress_line(progress: JobProgress, seconds_left: float | None) -> str:
    elapsed_s = max(progress.elapsed_s, 1e-9)
    parts = (
        f"{progress.finished_requests:,}/{progress.num_requests:,} requests",
        f"{progress.output_tokens / elapsed_s:,.0f} output tokens/s",
        f"{progress.computed_prompt_tokens / elapsed_s:,.0f} prompt tokens/s",
        f"{progress.saved_prompt_tokens:,} prompt tokens saved "
        f"({percent(progress.saved_prompt_tokens, progress.scheduled_prompt_tokens)})",
        f"KV {percent(progress.kv_tokens, progress.kv_cache_tokens)}",
        f"{'?' if seconds_left is None else duration(seconds_left)} left",
    )
    return " · ".join(parts)


class Pace:
    """How long the remaining tokens take at the recent pace. The last answers, when few requests share a step, take
    longer than it says."""

    def __init__(self) -> None:
        self._elapsed_s = 0.0
        self._tokens = 0
        self._tokens_per_s = 0.0

    def seconds_left(self, progress: JobProgress) -> float | None:
        """None while it would be a guess. Calls follow each other in time."""
        passed_s, tokens = progress.elapsed_s - self._elapsed_s, tokens_done(progress)
        if passed_s > 0:
            is_first = self._elapsed_s == 0
            kept = 0.0 if is_first else exp(-passed_s / (MEMORY_OF_PACE * progress.elapsed_s))
            self._tokens_per_s = kept * self._tokens_per_s + (1 - kept) * (tokens - self._tokens) / passed_s
            self._elapsed_s, self._tokens = progress.elapsed_s, tokens
        if fraction_done(progress) < MIN_FRACTION_KNOWN or self._tokens_per_s <= 0:
            return None
        return tokens_left(progress) / self._tokens_per_s


def tokens_done(progress: JobProgress) -> int:
    return progress.computed_prompt_tokens + progress.output_tokens


def tokens_left(progress: JobProgress) -> float:
    """Prompt tokens to be computed plus the expected output: after every token a request is assumed to end as often as
    requests ended early so far, and at its limit."""
    unfinished = progress.num_requests - progress.finished_requests
    output_tokens = float(progress.remaining_output_tokens)
    if progress.ended_early and unfinished > 0:
        chance = min(progress.ended_early / progress.output_tokens, 1.0)
        output_tokens = unfinished * (1 - (1 - chance) ** (output_tokens / unfinished)) / chance
    return progress.remaining_prompt_tokens + output_tokens


def fraction_done(progress: JobProgress) -> float:
    done = tokens_done(progress)
    return done / max(done + tokens_left(progress), 1)


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
        yield "  cut at the model's context length", f"{summary.num_cut:,}"
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
    yield "threads", f"{stats['num_threads']:,}"
    yield "  their CPU time", f"{stats['cpu_s']:.2f} s"
    yield "  waits for a CPU that others had", f"{stats['cpu_wait_s']:.2f} s"
    for matrix, way in stats["products"].items():
        yield f"product with {matrix}", way


def percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.1f}%"


def duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"
