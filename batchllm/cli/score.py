"""`batchllm score IN.jsonl -o OUT.jsonl --model DIR`: log-probabilities of given texts."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from batchllm.cli.app import app
from batchllm.cli.job_command import JobOptions, Model, Output, answer_lines, with_job_options
from batchllm.cli.option_types import text_or_file

INPUT_HELP = "Lines of JSON, or a table, with the columns prompt and continuations; - is standard input."


def continuation_list(text: str) -> list[Any]:
    """Parses " yes, no" or '[" yes", " no"]'. Values that are neither text nor token ids are refused when read."""
    if not text.startswith("["):
        return text.split(",")
    try:
        return msgspec.json.decode(text, type=list[Any])
    except msgspec.DecodeError as error:
        raise typer.BadParameter(
            f"--continuations: expected texts separated by commas, or a JSON list: {error}"
        ) from None


@app.command()
@with_job_options
def score(
    input: Annotated[str, typer.Argument(metavar="IN.jsonl", help=INPUT_HELP)],
    output: Output,
    model: Model,
    continuations: Annotated[
        str | None,
        typer.Option(
            "--continuations",
            "--choices",
            metavar="TEXT,...",
            help="For every prompt, spaces included: separated by commas, or a JSON list.",
            show_default="the column continuations",
        ),
    ] = None,
    perplexity: Annotated[
        bool, typer.Option("--perplexity", help="Score each prompt itself, with nothing after it.")
    ] = False,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT|FILE",
            help="Jinja text that makes the prompt from a row: {{ column }}.",
            show_default="the column prompt",
        ),
    ] = None,
    *,
    options: JobOptions,
) -> None:
    """Score given continuations of prompts, or whole texts; nothing is decoded.

    A row looks like {"prompt": "2 + 2 =", "continuations": [" 4", " five"]}, optionally with a custom_id. Its answer
    has the log-probability of each continuation after the prompt, per token and in total, the probability of each among
    the continuations, and which is the likeliest. With --perplexity it has the perplexity of the prompt. What prompts
    have in common is computed once.

    Errors, --resume, the files beside OUT.jsonl and the exit status are those of `batchllm run`."""
    if perplexity and continuations is not None:
        raise typer.BadParameter("give --continuations or --perplexity, not both")
    body = {} if continuations is None else {"continuations": continuation_list(continuations)}
    answer_lines(
        input,
        output,
        model,
        options,
        template=None if template is None else text_or_file(template),
        url="/v1/perplexity" if perplexity else "/v1/score",
        body=msgspec.json.encode(body).decode(),
    )
