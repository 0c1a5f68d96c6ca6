"""`batchllm plan IN.jsonl --model DIR`: what a job would cost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from batchllm.cli.app import EXIT_SOME_LINES_FAILED, app, exit_status
from batchllm.cli.console import PIPED_WIDTH, console_of, say
from batchllm.cli.option_types import (
    Backend,
    BackendOption,
    DeviceName,
    Dtype,
    MaxBatchTokens,
    MaxTokens,
    Overwrite,
    Quantization,
    memory_size,
)
from batchllm.options import DEFAULTS

INPUT_HELP = "Requests in the OpenAI Batch format; - is standard input."


@app.command()
def plan(
    input: Annotated[Path, typer.Argument(metavar="IN.jsonl", help=INPUT_HELP)],
    model: Annotated[
        str, typer.Option(help="Model directory, config.json, .gguf file or hub id; weights are not read.")
    ],
    device: Annotated[
        DeviceName,
        typer.Option(metavar="NAME", help="Device to predict for: a100, h100, h200, or cpu, this machine's."),
    ] = DeviceName.h100,
    backend: BackendOption = Backend.auto,
    kv_memory: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=memory_size,
            help="KV memory, such as 40GiB, 512MiB or 12GB.",
            show_default="90% of the device's memory after the weights",
        ),
    ] = None,
    kv_cache_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="KV memory in tokens instead.", show_default=False)
    ] = None,
    quantize: Annotated[
        Quantization | None,
        typer.Option(help="Weights and activations in 8 bits, on a CPU.", show_default="those of the checkpoint"),
    ] = None,
    dtype: Annotated[
        Dtype,
        typer.Option(metavar="TYPE", help="Of weights and KV: float32, bfloat16 or auto, the choice of `run`."),
    ] = Dtype.auto,
    max_tokens: MaxTokens = 256,
    expected_output_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Tokens assumed for each answer, within its limit.",
            show_default="limit",
        ),
    ] = None,
    max_batch_tokens: MaxBatchTokens = DEFAULTS.max_batch_tokens,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the token batches and the KV memory (.png, .svg, .pdf).")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every figure as JSON.")] = None,
    errors: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the lines that cannot run to this file.")
    ] = None,
    overwrite: Overwrite = False,
    shards: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Cut the job into this many files of equal cost.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where shards go.")] = None,
) -> None:
    """Predict what a job would take and gain, without running it.

    The job is simulated under several policies. No model runs; times come from a roofline model. Text prompts need the
    model's tokenizer; prompts of token ids need only its config.json.

    Exit status: 0 every line was planned; 3 some lines cannot run and were left out; 1 the job could not be planned
    or a file could not be written; 2 wrong usage; 130 interrupted; 143 terminated.
    """
    if kv_memory and kv_cache_tokens:
        raise typer.BadParameter("give --kv-memory or --kv-cache-tokens, not both")
    if (shards is None) != (output is None):
        raise typer.BadParameter("--shards N and --output DIR go together")
    log = console_of(sys.stderr)
    with exit_status(log):
        from batchllm.cli.plan_batch_file import PlanFiles, plan_batch_file
        from batchllm.estimate.devices import device_by_name
        from batchllm.jobs.files import is_standard_output
        from batchllm.reports.plan_text import print_plan

        job_plan = plan_batch_file(
            PlanFiles(input, errors, plot, json, output, shards or 0, overwrite),
            model,
            device_by_name(device.value, dtype.value, quantize.value if quantize else None),
            backend=backend.value,
            kv_bytes=kv_memory,
            kv_tokens=kv_cache_tokens,
            chat_max_tokens=max_tokens,
            expected_output_tokens=expected_output_tokens,
            max_batch_tokens=max_batch_tokens,
            log=lambda line: say(log, line),
        )
    holds_records = any(is_standard_output(path) for path in (errors, plot, json))
    print_plan(console_of(sys.stderr if holds_records else sys.stdout, piped_width=PIPED_WIDTH), job_plan)
    if job_plan.failed_lines:
        raise typer.Exit(EXIT_SOME_LINES_FAILED)
