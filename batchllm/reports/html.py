"""A job's answers as one self-contained page: no network, no other file, and no markup or script from a prompt or an
answer that a browser would obey."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files as package_files
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from jinja2 import Environment
from markupsafe import Markup

from batchllm.engine.recorder import MAX_LEVELS
from batchllm.jobs.figures import JobFigures, read_figures
from batchllm.jobs.files import check_files, write_file
from batchllm.jobs.line import BatchRequest, LineError
from batchllm.jobs.manifest import read_manifest
from batchllm.jobs.parts import answer_paths
from batchllm.jobs.read_answers import Answers, Failure
from batchllm.jobs.sources import open_source_of
from batchllm.reports.browser_data import BrowserData, browser_data
from batchllm.reports.charts import bar, curve
from batchllm.reports.run_text import duration, percent

MAX_FAILURES = 200  # that the page lists
PAGE = package_files("batchllm.reports") / "page"


@dataclass(frozen=True)
class ReportFiles:
    answers: Path
    report: Path
    input: Path | None  # None: the one named in the figures
    errors: Path | None  # these two need not exist
    figures: Path | None
    overwrite: bool = False  # of a report that is not empty

    def check(self) -> None:
        """Raises OSError or ValueError if the answers are missing, or if the report cannot be written or is one of the
        other files."""
        for source in (self.answers, self.input, self.errors, self.figures):
            if source and (source.exists() or source in (self.answers, self.input)):
                check_files(source, {"report": self.report}, overwrite=self.overwrite)


class Tile(NamedTuple):
    name: str
    value: str
    note: str = ""


class ShareRow(NamedTuple):
    """A row of a table, with a bar as long as its share."""

    cells: list[str]
    share: float
    row: int | None = None  # of the browser, to open


def write_report(files: ReportFiles) -> None:
    """Raises OSError or ValueError that names the faulty file."""
    files.check()
    write_file("report", files.report, report_page(files).encode(), overwrite=files.overwrite)


def report_page(files: ReportFiles) -> str:
    figures = read_figures(files.figures) if files.figures and files.figures.exists() else None
    answers = Answers()
    for path in answer_paths(files.answers):
        answers.read(path)
    has_errors = files.errors is not None and files.errors.is_file()
    if has_errors and files.errors:
        answers.read(files.errors)
    input_path = files.input or (Path(figures.input) if figures and figures.input else None)
    requests: list[BatchRequest] | None = None
    if input_path and (input_path.is_file() or input_path.is_dir()):
        manifest = read_manifest(files.answers)
        with open_source_of(input_path, manifest.fingerprint if manifest else {}) as source:
            lines = list(source.requests())
        requests = [line for line in lines if not isinstance(line, LineError)]
        errors = [line for line in lines if isinstance(line, LineError)]
        if not has_errors:
            answers.failures += [Failure(error.code, str(error), error.custom_id, error.line) for error in errors]
    browser = browser_data(requests, answers.answers, answers.failures)
    style, script = ((PAGE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"bar": bar}
    return environment.from_string((PAGE / "report.html").read_text(encoding="utf-8")).render(
        name=files.answers.name,
        model=figures.model if figures else next((a.model for a in answers.answers if a.model), ""),
        style=Markup(style),
        script=Markup(script),
        style_hash=sha256(style),
        script_hash=sha256(script),
        tiles=list(tiles(answers, figures)),
        missing=list(missing(files, figures, input_path, requests, answers)),
        curves=curves(figures) if figures else None,
        phases=list(phases(figures)) if figures else [],
        levels=list(levels(figures)) if figures else [],
        groups=list(groups(figures, requests, browser)) if figures else [],
        failure_counts=Counter(failure.code for failure in answers.failures).most_common(),
        failures=answers.failures[:MAX_FAILURES],
        browser=browser,
        num_answers=len(answers.answers),
    )


def sha256(text: str) -> str:
    """The Content-Security-Policy name of a script or style that the page may contain."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def tiles(answers: Answers, figures: JobFigures | None) -> Iterator[Tile]:
    failed = len(answers.failures)
    yield Tile("lines answered", f"{len(answers.answers):,}", f"{failed:,} failed" if failed else "none failed")
    if figures is None:
        prompt_tokens = sum(answer.prompt_tokens for answer in answers.answers)
        output_tokens = sum(answer.output_tokens for answer in answers.answers)
        yield Tile("prompt tokens", f"{prompt_tokens:,}", "of the answered lines")
        yield Tile("output tokens", f"{output_tokens:,}", "of the answered lines")
        return
    progress = figures.progress
    saved, scheduled = progress.saved_prompt_tokens, progress.scheduled_prompt_tokens
    seconds = max(progress.elapsed_s, 1e-9)
    yield Tile("prompt tokens saved", percent(saved, scheduled), f"{saved:,} of {scheduled:,}")
    yield Tile("output tokens", f"{progress.output_tokens:,}", f"{progress.output_tokens / seconds:,.0f} per second")
    yield Tile("time", time_with_unit(progress.elapsed_s), f"{progress.steps:,} steps")
    full = percent(progress.peak_kv_tokens, progress.kv_cache_tokens)
    yield Tile("peak KV tokens", f"{progress.peak_kv_tokens:,}", f"{full} of {progress.kv_cache_tokens:,}")
    yield Tile("preemptions", f"{progress.preemptions:,}", f"{progress.recomputed_tokens:,} tokens computed again")


def time_with_unit(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{duration(seconds)} {'h' if seconds >= 3600 else 'min'}"


def missing(
    files: ReportFiles,
    figures: JobFigures | None,
    input_path: Path | None,
    requests: list[BatchRequest] | None,
    answers: Answers,
) -> Iterator[str]:
    """What the page cannot show, and why."""
    if figures is None:
        name = files.figures.name if files.figures else "The file of figures"
        yield f"{name} is not there: no timeline, no sharing by level, no times."
    elif figures.progress.finished_requests < figures.progress.num_requests:
        finished, all_requests = figures.progress.finished_requests, figures.progress.num_requests
        yield f"The job was stopped: {finished:,} of {all_requests:,} requests were finished."
    if requests is None:
        name = str(input_path) if input_path else "The input"
        yield f"{name} is not there: answers are shown without their prompts. Name it with --input."
        return
    known = {request.custom_id for request in requests}
    if strangers := sum(answer.custom_id not in known for answer in answers.answers):
        yield f"{strangers:,} answers belong to no line of {input_path} and are not shown."


def curves(figures: JobFigures) -> dict[str, Any]:
    timeline, limit = figures.timeline, figures.progress.kv_cache_tokens
    edges_s = [0.0, *accumulate(timeline.seconds)]
    prefill, decode = (
        [round(tokens / steps, 2) for tokens, steps in zip(column, timeline.steps, strict=True)]
        for column in (timeline.prefill_tokens, timeline.decode_tokens)
    )
    peak = max(timeline.kv_tokens, default=0)
    is_near = limit <= 2 * peak
    points = {  # for the page's own script, which tells the values under the pointer
        "end_s": [round(s, 3) for s in edges_s[1:]],
        "steps": timeline.steps,
        "prefill": prefill,
        "decode": decode,
        "kv": timeline.kv_tokens,
    }
    return {
        "prefill": curve("prefill", "Prefill tokens per step over time", edges_s, prefill),
        "decode": curve("decode", "Decode tokens per step over time", edges_s, decode),
        "kv": curve(
            "kv",
            "KV tokens in use over time",
            edges_s,
            timeline.kv_tokens,
            limit=limit if is_near else None,
            has_time=True,
        ),
        "kv_cache_tokens": limit,
        "limit_is_drawn": is_near,
        "steps_per_point": max(timeline.steps, default=1),
        "points": Markup(msgspec.json.encode(points).decode()),  # numbers alone
    }


def phases(figures: JobFigures) -> Iterator[ShareRow]:
    seconds = dict(figures.seconds)
    total_s = seconds.pop("total", figures.progress.elapsed_s)
    load_s = seconds.pop("load", None)
    rest_s = total_s - sum(seconds.values())
    if rest_s > 0:
        seconds["other"] = rest_s
    for phase, phase_s in sorted(seconds.items(), key=lambda item: -item[1]):
        yield ShareRow([phase, f"{phase_s:,.2f}", percent_of(phase_s, total_s)], phase_s / max(total_s, 1e-9))
    if load_s is not None:
        yield ShareRow(["loading the model, before", f"{load_s:,.2f}", ""], 0)


def percent_of(part: float, whole: float) -> str:
    return f"{100 * part / max(whole, 1e-9):.1f}%"


def levels(figures: JobFigures) -> Iterator[ShareRow]:
    whole = figures.progress.scheduled_prompt_tokens
    for level in figures.levels:
        yield ShareRow(
            [
                f"{level.depth}" + (" and deeper" if level.depth == MAX_LEVELS else ""),
                f"{level.segments:,}",
                f"{level.median_readers:,.0f}",
                f"{level.max_readers:,}",
                f"{level.stored_tokens:,}",
                f"{level.saved_tokens:,}",
                percent(level.saved_tokens, whole),
            ],
            level.saved_tokens / max(whole, 1),
        )


def groups(figures: JobFigures, requests: list[BatchRequest] | None, browser: BrowserData) -> Iterator[ShareRow]:
    total_s = max(sum(figures.timeline.seconds), 1e-9)
    by_line = {request.line: request for request in requests or ()}
    for group in figures.groups:
        request = by_line.get(group.line)
        row = browser.row_of_prefix(group.line, group.prompt, group.requests)
        label = browser.rows[row].text if row is not None else f"the prefix of line {group.line:,}"
        if request and row is None:
            label = f"the prefix of {request.custom_id}"
        yield ShareRow(
            [
                " ".join(label[:400].split())[:120],
                f"{group.requests:,}",
                f"{group.prefix_tokens:,}",
                f"{group.seconds:,.2f}",
                percent_of(group.seconds, total_s),
            ],
            group.seconds / total_s,
            row,
        )
