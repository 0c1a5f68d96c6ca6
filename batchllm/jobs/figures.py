"""OUT.figures.json, which a run leaves beside its answers: what a report shows and the answers do not contain. Its size
is bounded, however long the job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from batchllm.engine.recorder import GroupFigures, RunRecorder, TimelineFigures
from batchllm.jobs.files import write_file
from batchllm.jobs.job_prompts import JobPrompts
from batchllm.outputs import JobProgress
from batchllm.sharing import LevelFigures


class LineGroup(msgspec.Struct, frozen=True):
    """The requests under one shared prefix, identified by one of them."""

    line: int  # of the input
    prompt: int  # which of the line's prompts
    requests: int
    prefix_tokens: int
    seconds: float  # of the steps, each divided among its rows


class JobFigures(msgspec.Struct, frozen=True):
    model: str
    input: str | None  # absolute path; None if it was a pipe
    progress: JobProgress  # after the last step
    seconds: dict[str, float]  # by phase; those of LLM.stats if the job finished
    timeline: TimelineFigures
    levels: list[LevelFigures]
    groups: list[LineGroup]  # the slowest first
    products: dict[str, str] = {}  # by shape and type of a matrix, how it was multiplied


def leave_figures(
    path: Path,
    recorder: RunRecorder,
    prompts: JobPrompts,
    stats: dict[str, Any],
    model: str,
    input: Path | str,
    overwrite: bool,
    log: Callable[[str], None],
) -> None:
    """Writes what was recorded, if anything ran. A failure is logged and does not end the job.

    prompts: in the order in which they were added to the engine.
    stats: LLM.stats, empty if the job was stopped.
    """
    if recorder.progress is None:
        return
    first_request = np.cumsum([0, *(params.n for params in prompts.params)])

    def line_group(group: GroupFigures) -> LineGroup:
        line, place = prompts.place_of(int(np.searchsorted(first_request, group.request, side="right")) - 1)
        return LineGroup(prompts.line_number(line), place, group.requests, group.prefix_tokens, group.seconds)

    figures = JobFigures(
        model=model,
        input=str(input.absolute()) if isinstance(input, Path) and (input.is_file() or input.is_dir()) else None,
        progress=recorder.progress,
        seconds=stats.get("seconds", recorder.progress.seconds),
        timeline=recorder.timeline.figures,
        levels=recorder.levels,
        groups=[line_group(group) for group in recorder.groups],
        products=stats.get("products", {}),
    )
    try:
        write_file("figures", path, msgspec.json.encode(figures) + b"\n", overwrite=overwrite)
    except OSError as error:
        log(f"batchllm: {error}")


def read_figures(path: Path) -> JobFigures:
    """Raises OSError, or ValueError that names the file and the field."""
    try:
        figures = msgspec.json.decode(path.read_bytes(), type=JobFigures)
    except msgspec.DecodeError as error:
        raise ValueError(f"figures {str(path)!r}: {error}") from None
    timeline = figures.timeline
    if len({len(getattr(timeline, name)) for name in timeline.__struct_fields__}) != 1:
        raise ValueError(f"figures {str(path)!r}: timeline: expected lists of one length")
    if min(timeline.steps, default=1) < 1:
        raise ValueError(f"figures {str(path)!r}: timeline.steps: expected at least 1 each, got {min(timeline.steps)}")
    return figures
