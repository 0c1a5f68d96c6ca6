"""The command line: `batchllm run in.jsonl -o out.jsonl --model DIR`, `batchllm plan in.jsonl --model DIR`.

Everything heavy is imported inside the commands, so that `batchllm --help` answers at once.
"""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from batchllm.api import LLM

PIPED_WIDTH = 140  # of tables that no terminal shows
EXIT_NOT_RUN, EXIT_SOME_LINES_FAILED, EXIT_INTERRUPTED = 1, 3, 130

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
    cpu = "cpu"


UNIT_BYTES = {"B": 1, **{f"{p}B": 1000**n for n, p in enumerate("KMGT", 1)}}
UNIT_BYTES |= {f"{p}iB": 1024**n for n, p in enumerate("KMGT", 1)}


def memory_size(text: str) -> int:
    """Bytes of 40GiB, 512MiB or 12.5GB."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?i?B)", text)
    if not match or match[2] not in UNIT_BYTES or not (size := int(float(match[1]) * UNIT_BYTES[match[2]])):
        raise typer.BadParameter(f"expected a size such as 40GiB, 512MiB or 12GB, got {text!r}")
    return size


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
    generation_config: Annotated[
        GenerationConfig,
        typer.Option(help="auto: the model's temperature, top_p and top_k where a line has none; vllm: 1, 1 and 0."),
    ] = GenerationConfig.auto,
    allow_special_tokens: Annotated[
        bool, typer.Option("--allow-special-tokens", help="Special tokens in messages are no text.")
    ] = False,
    dtype: Annotated[Dtype, typer.Option(help="auto: bfloat16 where the CPU multiplies it.")] = Dtype.auto,
    device: Annotated[RunDevice, typer.Option(help="auto: the CPU. cuda has not run on a GPU yet.")] = RunDevice.auto,
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
    after 16 tokens; without a temperature, top_p or top_k it has those of the model's generation_config.json.

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
            device=device.value,
            levels=None if levels is Levels.auto else int(levels.value),
            page_size=page_size,
            kv_cache_tokens=kv_cache_tokens,
            max_batch_tokens=max_batch_tokens,
            num_threads=num_threads,
            generation_config=generation_config.value,
            allow_special_tokens=allow_special_tokens,
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


@app.command()
def plan(
    input: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests in the OpenAI Batch format.")],
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
    max_batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one forward pass.")] = 2048,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the token batches and the KV memory (.png, .svg, .pdf).")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every figure as JSON.")] = None,
    errors: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the lines that cannot run.")] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Cut the job into so many files of equal cost.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where shards go.")] = None,
) -> None:
    """Tell what a job would gain, before a device is rented.

    The job is simulated under several policies; nothing is run, and times are those of a roofline model. Prompts of
    text need the model's tokenizer; prompts of token ids need only its config.json.

    Exit status: 0 every line was planned; 3 some lines cannot run and were left out; 1 the job could not be planned;
    2 wrong usage. Files that exist are replaced.
    """
    if kv_memory and kv_cache_tokens:
        raise typer.BadParameter("give --kv-memory or --kv-cache-tokens, not both")
    if (shards is None) != (output is None):
        raise typer.BadParameter("--shards N and --output DIR go together")
    from batchllm.jobs.plan_command import PlanFiles, plan_batch_file
    from batchllm.jobs.plan_report import print_plan

    log = Console(stderr=True)
    try:
        job_plan = plan_batch_file(
            PlanFiles(input, errors, plot, json, output, shards or 0),
            model,
            device.value,
            kv_bytes=kv_memory,
            kv_tokens=kv_cache_tokens,
            chat_max_tokens=max_tokens,
            expected_output_tokens=expected_output_tokens,
            max_batch_tokens=max_batch_tokens,
            log=lambda line: log.print(line, highlight=False, markup=False, soft_wrap=True),
        )
    except (OSError, ValueError, MemoryError) as error:
        log.print(f"batchllm: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(EXIT_NOT_RUN) from None
    except KeyboardInterrupt:
        log.print("batchllm: interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    print_plan(Console(width=None if Console().is_terminal else PIPED_WIDTH), job_plan)
    if job_plan.failed_lines:
        raise typer.Exit(EXIT_SOME_LINES_FAILED)


def main() -> None:
    app()
