"""`batchllm report OUT.jsonl`: a page about a finished job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from batchllm.cli.app import app, exit_status
from batchllm.cli.console import console_of, say
from batchllm.cli.option_types import Overwrite


@app.command()
def report(
    output: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="The answers of a job; a directory with --ray.")],
    page: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page.", show_default="OUT.html")
    ] = None,
    input: Annotated[
        Path | None,
        typer.Option(metavar="IN.jsonl", help="The job's lines.", show_default="what OUT.figures.json names"),
    ] = None,
    errors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Lines without an answer.", show_default="OUT.errors.jsonl, if it is there"),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a page about a job: its steps, what was shared, what failed, and every answer.

    The page is a single file that needs no network. It shows the figures that a run leaves in OUT.figures.json; without
    that file it says what is missing. No model is needed.

    Exit status: 0 the page was written; 1 it could not be; 2 wrong usage; 130 interrupted; 143 terminated.
    """
    log = console_of(sys.stderr)
    with exit_status(log):
        from batchllm.jobs.parts import errors_path
        from batchllm.reports.html import ReportFiles, write_report

        page = page or output.with_suffix(".html")
        figures = output.with_suffix(".figures.json")
        write_report(ReportFiles(output, page, input, errors or errors_path(output), figures, overwrite))
        say(log, f"wrote {page}")
