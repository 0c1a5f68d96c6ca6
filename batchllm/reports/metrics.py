"""A running job's figures in Prometheus' text format: a file for node_exporter's textfile collector or any other reader
of that format."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from batchllm.jobs.answering import OnProgress
from batchllm.outputs import JobProgress

SECONDS_BETWEEN_WRITES = 5.0
OURS = b"# HELP batchllm_"  # how every such file begins


class Metric(NamedTuple):
    name: str
    kind: str  # "counter" or "gauge"
    help: str
    label: str | None  # whose value distinguishes the samples; None: there is one sample
    samples: dict[str, float]


def metrics_of(progress: JobProgress) -> Iterator[Metric]:
    yield Metric(
        "batchllm_requests",
        "gauge",
        "Requests of the job, one per completion, by state.",
        "state",
        {
            "waiting": progress.waiting_requests,
            "running": progress.running_requests,
            "finished": progress.finished_requests,
        },
    )
    yield Metric(
        "batchllm_tokens_total",
        "counter",
        "Tokens by kind: prompt tokens computed and saved, tokens computed again, tokens generated.",
        "kind",
        {
            "prompt_computed": progress.computed_prompt_tokens,
            "prompt_saved": progress.saved_prompt_tokens,
            "recomputed": progress.recomputed_tokens,
            "output": progress.output_tokens,
        },
    )
    yield Metric(
        "batchllm_remaining_tokens",
        "gauge",
        "The most tokens still to be computed, by kind.",
        "kind",
        {"prompt": progress.remaining_prompt_tokens, "output": progress.remaining_output_tokens},
    )
    yield Metric(
        "batchllm_kv_tokens",
        "gauge",
        "Token capacity of the KV cache pages, by state.",
        "state",
        {"used": progress.kv_tokens, "free": progress.kv_cache_tokens - progress.kv_tokens},
    )
    yield Metric(
        "batchllm_preemptions_total",
        "counter",
        "Requests that gave their KV memory back and were computed again.",
        None,
        {"": progress.preemptions},
    )
    yield Metric("batchllm_steps_total", "counter", "Forward passes.", None, {"": progress.steps})
    yield Metric(
        "batchllm_phase_seconds_total", "counter", "Wall time of the job by phase.", "phase", dict(progress.seconds)
    )
    yield Metric("batchllm_job_seconds", "gauge", "Wall time since the job started.", None, {"": progress.elapsed_s})


def metrics_text(progress: JobProgress) -> bytes:
    lines = []
    for metric in metrics_of(progress):
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        for value, number in metric.samples.items():
            labels = f'{{{metric.label}="{value}"}}' if metric.label else ""
            lines.append(f"{metric.name}{labels} {number!r}")
    return ("\n".join(lines) + "\n").encode()


@contextmanager
def keep_metrics(
    path: Path | None, show: OnProgress, *, overwrite: bool, log: Callable[[str], None]
) -> Iterator[OnProgress]:
    """Writes its latest figures every few seconds and at the end; `show` gets all of them. Readers always find a whole
    file: each version is written beside it and then replaces it.

    path: None writes nothing.
    overwrite: replaces a file that holds something other than our metrics. log: is told once if it cannot be written,
    which does not end the job.

    Raises OSError that names it if it is not a file, or holds something that may not be replaced.
    """
    if path is None:
        yield show
        return
    check_replaceable(path, overwrite=overwrite)
    last: JobProgress | None = None
    next_write_s, has_failed = 0.0, False

    def write(progress: JobProgress) -> None:
        nonlocal has_failed
        try:
            replace_file(path, metrics_text(progress))
        except OSError as error:
            if not has_failed:
                log(f"batchllm: metrics {str(path)!r}: {error.strerror}")
            has_failed = True

    def on_progress(progress: JobProgress) -> None:
        nonlocal last, next_write_s
        show(progress)
        last = progress
        if progress.elapsed_s >= next_write_s:
            next_write_s = progress.elapsed_s + SECONDS_BETWEEN_WRITES
            write(progress)

    try:
        yield on_progress
    finally:
        if last:
            write(last)


def check_replaceable(path: Path, *, overwrite: bool) -> None:
    if not path.exists():
        return
    if not path.is_file():
        raise OSError(f"metrics {str(path)!r}: expected a file, which each update replaces")
    with path.open("rb") as file:
        held = file.read(len(OURS))
    if held not in (b"", OURS) and not overwrite:
        raise FileExistsError(f"metrics {str(path)!r}: exists and holds something else; --overwrite replaces it")


def replace_file(path: Path, content: bytes) -> None:
    target = Path(os.path.realpath(path))
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}-", delete=False) as file:
        try:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)  # its reader is another user
            file.close()
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise
