"""`batchllm merge IN.jsonl SHARD.jsonl... -o OUT.jsonl`: the answers of shards become those of the job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from batchllm.cli.app import EXIT_SOME_LINES_FAILED, app, exit_status
from batchllm.cli.console import console_of, say
from batchllm.cli.option_types import Overwrite


@app.command()
def merge(
    input: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="The whole job, in the OpenAI Batch format.")],
    shards: Annotated[
        list[Path],
        typer.Argument(
            metavar="SHARD.jsonl...", help="The answers that `run` wrote for its shards; a directory with --ray."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT.jsonl", help="Answers: lines, or a table (.parquet).")
    ],
    errors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Lines without an answer.", show_default="OUT.errors.jsonl"),
    ] = None,
    overwrite: Overwrite = False,
    ordered: Annotated[bool, typer.Option("--ordered", help="Write answers in the order of the lines.")] = False,
) -> None:
    """Join the outputs of a job's shards, as if one run had answered all lines.

    Lines are identified by their custom_id, so the job may have been cut in any way. Shards are refused if they ran
    with another model or other options, answer a line twice, or are still being written. Lines that no shard answered
    stay open: `run IN.jsonl -o OUT.jsonl --resume` continues with them.

    Exit status: 0 every line has an answer; 3 some lines failed or are open; 1 the shards could not be merged; 2 wrong
    usage; 130 interrupted; 143 terminated.
    """
    log = console_of(sys.stderr)
    with exit_status(log):
        from batchllm.jobs.merge import merge as merge_shards
        from batchllm.jobs.sinks import RecordFiles

        files = RecordFiles(output, errors or output.with_suffix(".errors.jsonl"), ordered)
        job = merge_shards(input, shards, files, overwrite=overwrite)
    say(log, f"{job.num_answered:,} lines answered, {job.num_failed:,} failed, {job.num_open:,} open")
    if job.num_failed or job.num_open:
        raise typer.Exit(EXIT_SOME_LINES_FAILED)
