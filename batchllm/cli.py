"""The command line: `batchllm run in.jsonl -o out.jsonl --model DIR`.

Everything heavy is imported inside `run`, so that `batchllm --help` answers at once.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from batchllm.api import LLM

EXIT_NOT_RUN, EXIT_SOME_LINES_FAILED, EXIT_INTERRUPTED = 1, 3, 130

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Levels(str, Enum):
    auto = "auto"
    none = "0"
    single = "1"


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
    input: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests in the OpenAI Batch format.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT.jsonl", help="Answers; an existing file is replaced.")
    ],
    model: Annotated[str, typer.Option(help="Hugging Face model directory (or hub id).")],
    errors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Lines without an answer; replaced, too.", show_default="OUT.errors.jsonl"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Limit of a chat answer that names none.")] = 256,
    seed: Annotated[int, typer.Option(help="Seeds, with its custom_id, each request that names no seed.")] = 0,
    levels: Annotated[
        Levels, typer.Option(help="Depth of prefix sharing: any (auto), a single level (1), none (0).")
    ] = Levels.auto,
    dtype: Annotated[Dtype, typer.Option(help="auto: bfloat16 where the CPU multiplies it.")] = Dtype.auto,
    kv_cache_tokens: Annotated[
        int | None, typer.Option(min=1, help="Size of the KV pool.", show_default="what fits in memory")
    ] = None,
    max_batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one forward pass.", show_default="chosen")
    ] = None,
    page_size: Annotated[int, typer.Option(min=1, help="Tokens of one KV page.")] = 16,
    num_threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's")] = None,
    json_summary: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the final figures as JSON, too.")
    ] = None,
) -> None:
    """Answer every line of a batch file.

    Lines: POST to /v1/chat/completions or /v1/completions. Answers are written as they complete, in any order;
    match them by custom_id. Without a limit of its own, a chat answer ends after --max-tokens and a completion
    after 16 tokens; temperature is 1.

    Exit status: 0 every line was answered; 3 the job ran, but some lines failed (see --errors); 1 the job could
    not run; 2 wrong usage; 130 interrupted, with the answers so far in OUT.jsonl.
    """
    import msgspec

    from batchllm.jobs.report import show_progress, summary_table
    from batchllm.jobs.runner import BatchFiles, JobInterrupted, run_batch_file

    log = Console(stderr=True)

    def load_llm() -> LLM:
        from batchllm.api import LLM

        log.print(f"loading {model}", highlight=False, markup=False, soft_wrap=True)
        return LLM(
            model,
            dtype=dtype.value,
            levels=None if levels is Levels.auto else int(levels.value),
            page_size=page_size,
            kv_cache_tokens=kv_cache_tokens,
            max_batch_tokens=max_batch_tokens,
            num_threads=num_threads,
        )

    try:
        with show_progress(log) as on_progress:
            summary = run_batch_file(
                BatchFiles(input, output, errors or output.with_suffix(".errors.jsonl"), json_summary),
                load_llm,
                model_name=Path(model).resolve().name,
                chat_max_tokens=max_tokens,
                seed=seed,
                on_progress=on_progress,
            )
        if json_summary:
            json_summary.write_bytes(msgspec.json.encode(summary) + b"\n")
    except (OSError, ValueError, MemoryError) as error:
        log.print(f"batchllm: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(EXIT_NOT_RUN) from None
    except (KeyboardInterrupt, JobInterrupted) as stop:
        state = f"the answers so far are in {output}" if isinstance(stop, JobInterrupted) else "nothing was written"
        log.print(f"batchllm: interrupted; {state}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    Console().print(summary_table(summary))
    if summary.num_failed:
        raise typer.Exit(EXIT_SOME_LINES_FAILED)


def main() -> None:
    app()
