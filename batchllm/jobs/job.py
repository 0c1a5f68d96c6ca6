"""`run_job`: `batchllm run` as a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchllm.jobs.answering import OnProgress
from batchllm.jobs.inputs import is_remote
from batchllm.jobs.line import CHAT, COMPLETION, KINDS
from batchllm.jobs.run import (
    BatchFiles,
    JobSummary,
    RunOptions,
    errors_beside,
    figures_beside,
    run_batch_file,
)
from batchllm.jobs.sources import Ask
from batchllm.options import DEFAULTS

if TYPE_CHECKING:
    from batchllm.llm import LLM

# The engine options that answers depend on.
ANSWER_OPTIONS = ("dtype", "quantize", "generation_config", "allow_special_tokens", "reasoning_tags")


def run_job(
    source: str | Path,
    sink: str | Path,
    model: str | Path | LLM,
    *,
    errors: str | Path | None = None,
    summary: Path | None = None,
    report: Path | None = None,
    metrics: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    ordered: bool = False,
    template: str | None = None,
    completion: bool = False,
    url: str | None = None,
    body: str = "{}",
    limit: int | None = None,
    sample: int | None = None,
    retry_errors: bool = False,
    max_error_rate: float | None = None,
    time_limit_s: float | None = None,
    max_tokens: int = 256,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    log: Callable[[str], None] = print,
    **engine_options: Any,
) -> JobSummary:
    """Answers every line of `source` into `sink`; every line is answered, or reported, exactly once.

    source: a file in the OpenAI Batch format or, with a template or a url, a table: lines of JSON, .csv, .tsv, Parquet
        or the directory of a Hugging Face dataset. It may be compressed (.gz, .zst), "-", a pipe or remote (s3://...).
    sink: lines of JSON in OpenAI's output format, or a table if its name ends in .parquet.
    model: a directory, a hub id or an LLM; engine_options are those of LLM, unless it is one.
    errors: file for lines without an answer; by default SINK.errors.jsonl, or `log` if the sink is not a file.
    summary, report, metrics: files that this call does not write, but which must differ from all others.
    resume: continues the job that the sink belongs to, or starts it. overwrite: replaces files that are not empty.
    ordered: the sink has the order of the lines, and is written once all answers are there.
    template, url, body: make a request of a row, as in batchllm.jobs.sources.Ask. url: /v1/chat/completions (the
        default), /v1/completions (also by `completion`), /v1/score or /v1/perplexity.
    limit, sample: only the first lines, or this many random ones.
    max_tokens: for chat lines and rows that set none.
    log: is told what the command line would print. The other options are those of batchllm.jobs.run.RunOptions.

    Raises OSError or ValueError before anything is written, and OSError if a file fails; JobInterrupted for a
    KeyboardInterrupt and the time limit; ValueError if too many lines fail.
    """
    sink = Path(sink)
    llm = None if isinstance(model, (str, Path)) else model
    directory = Path(llm.directory if llm else str(model))
    engine = {name: getattr(llm.options if llm else DEFAULTS, name) for name in ANSWER_OPTIONS} | engine_options

    def load_llm() -> LLM:
        if llm:
            return llm
        from batchllm.llm import LLM

        log(f"loading {model}")
        loaded = LLM(str(model), **engine_options)
        log(f"device {loaded.device_choice}")
        log(f"backend {loaded.backend}")
        return loaded

    files = BatchFiles(
        source if is_remote(source) else Path(source),
        sink,
        Path(errors) if errors else errors_beside(sink, resume=resume),
        summary,
        overwrite,
        str(llm.directory if llm else model),
        resume,
        ordered,
        figures_beside(sink),
        report,
        metrics,
    )
    options = run_options(
        directory,
        engine,
        what_to_ask(template, url, body, completion=completion),
        chat_max_tokens=max_tokens,
        seed=seed,
        retry_errors=retry_errors,
        max_error_rate=max_error_rate,
        time_limit_s=time_limit_s,
        limit=limit,
        sample=sample,
    )
    return run_batch_file(files, load_llm, options, on_progress=on_progress, log=log)


def run_options(model: Path, engine: Mapping[str, Any], ask: Ask | None, **others: Any) -> RunOptions:
    """engine: at least the values of ANSWER_OPTIONS. others: fields of RunOptions."""
    answer_options = {name: str(engine[name]) for name in ANSWER_OPTIONS}
    return RunOptions(model_name=model.resolve().name, answer_options=answer_options, ask=ask, **others)


def what_to_ask(template: str | None, url: str | None, body: str, *, completion: bool) -> Ask | None:
    """None: the lines say it themselves."""
    if url is not None and url not in KINDS:
        raise ValueError(f"url: expected one of {', '.join(KINDS)}, got {url!r}")
    if url is not None and completion and url != COMPLETION.url:
        raise ValueError(f"url: expected {COMPLETION.url!r} with completion, got {url!r}")
    if template is None and url is None:
        return None
    return Ask(template, KINDS[url] if url else COMPLETION if completion else CHAT, body)
