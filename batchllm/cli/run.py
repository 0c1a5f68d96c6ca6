"""`batchllm run IN.jsonl -o OUT.jsonl --model DIR`: an answer for every line."""

from __future__ import annotations

from typing import Annotated

import typer

from batchllm.cli.app import app
from batchllm.cli.job_command import JobOptions, Model, Output, answer_lines, with_job_options
from batchllm.cli.option_types import GenerationConfig, MaxTokens, text_or_file

INPUT_HELP = "Requests in the OpenAI Batch format, or a table with --template; - is standard input."


@app.command()
@with_job_options
def run(
    input: Annotated[str, typer.Argument(metavar="IN.jsonl", help=INPUT_HELP)],
    output: Output,
    model: Model,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT|FILE", help="Jinja text that makes the user's message from a row of a table: {{ column }}."
        ),
    ] = None,
    completion: Annotated[
        bool, typer.Option("--completion", help="The template makes the prompt itself, not a chat message.")
    ] = False,
    body: Annotated[
        str, typer.Option(metavar="JSON", help='With --template: fields of every request, such as {"temperature": 0}.')
    ] = "{}",
    max_tokens: MaxTokens = 256,
    generation_config: Annotated[
        GenerationConfig,
        typer.Option(
            help="auto: the model's temperature, top_p, top_k, min_p and repetition_penalty if a line has none; "
            "vllm: 1, 1, 0, 0 and 1."
        ),
    ] = GenerationConfig.auto,
    allow_special_tokens: Annotated[
        bool, typer.Option("--allow-special-tokens", help="Let special tokens in messages through.")
    ] = False,
    reasoning_tags: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="BEGIN END",
            help="Tags around a model's reasoning.",
            show_default="<think> </think>, if the model has them",
        ),
    ] = None,
    *,
    options: JobOptions,
) -> None:
    """Answer every line of a batch file.

    A line is a POST to /v1/chat/completions, /v1/completions, /v1/score or /v1/perplexity. Answers are written as they
    complete, in any order; match them by custom_id. A line that sets no limit ends after --max-tokens for a chat and
    after 16 tokens for a completion. A temperature, top_p, top_k, min_p or repetition_penalty that it does not set
    comes from the model's generation_config.json. A model's reasoning is in reasoning_content, beside content. If the
    model's context length ends an answer before its limit, its finish_reason is "length" and its stop_reason
    "max_model_len".

    Whatever ends a job, --resume continues it: no line is lost and none is answered twice. OUT.jsonl.manifest.json
    records which job OUT.jsonl belongs to; any other job is refused.

    Exit status, of the whole job: 0 every line was answered; 3 the job ran, but some lines failed (see --errors); 1 the
    job could not run, its answers could not be written, or too many lines failed; 2 wrong usage; 124 out of time
    (--time-limit), 130 interrupted, 143 terminated, each with the answers so far in OUT.jsonl."""
    if template is None and (completion or body != "{}"):
        raise typer.BadParameter("--completion and --body go with --template")
    answer_lines(
        input,
        output,
        model,
        options,
        template=None if template is None else text_or_file(template),
        completion=completion,
        body=body,
        max_tokens=max_tokens,
        generation_config=generation_config.value,
        allow_special_tokens=allow_special_tokens,
        reasoning_tags=reasoning_tags or "auto",
    )
