"""Plans a batch file: reads files, writes files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

import batchllm_ext as ext
from batchllm.estimate.job_plan import PAGE_SIZE, Assumptions, JobPlan, plan_job
from batchllm.estimate.roofline import Device, weight_bytes
from batchllm.jobs.files import check_files, check_writable, write_file
from batchllm.jobs.inputs import optional_import
from batchllm.jobs.line import LineError
from batchllm.jobs.openai_records import error_record, new_job_id
from batchllm.jobs.read_job import WeightlessModel, read_job
from batchllm.jobs.shards import shard_paths, write_shards
from batchllm.jobs.sources import open_source
from batchllm.models.backend import describe_model
from batchllm.models.config import config_file, model_files, resolve_model
from batchllm.models.description import ModelDescription
from batchllm.models.gguf_file import is_gguf
from batchllm.requests import RequestLimits

PLOT_SUFFIXES = (".png", ".svg", ".pdf")
KV_SHARE = 0.9  # of a device's memory less the weights: activations, logits and the allocator need the rest
LISTED_ERRORS = 10


@dataclass(frozen=True)
class PlanFiles:
    input: Path
    errors: Path | None = None
    plot: Path | None = None
    json: Path | None = None
    shards_directory: Path | None = None
    num_shards: int = 0
    overwrite: bool = False  # of files that are not empty

    def check(self, model: str) -> None:
        """Raises OSError or ValueError for files that cannot be used. Changes none of them."""
        if self.plot:
            if self.plot.suffix.lower() not in PLOT_SUFFIXES:
                raise ValueError(f"plot {str(self.plot)!r}: expected a name that ends in {', '.join(PLOT_SUFFIXES)}")
            optional_import("matplotlib", f"plot {str(self.plot)!r} is a figure", extra="plot")
        outputs = {"errors": self.errors, "plot": self.plot, "json": self.json}
        if directory := self.shards_directory:
            if directory.is_dir():
                outputs |= {path.name: path for path in shard_paths(directory, self.num_shards)}
            elif directory.exists():
                raise NotADirectoryError(f"shards {str(directory)!r}: is a file, not a directory")
            else:
                check_writable("shards", directory)
        check_files(self.input, outputs, overwrite=self.overwrite, others={"model": model_files(model)})


def plan_batch_file(
    files: PlanFiles,
    model: str,
    device: Device,
    *,
    backend: str,
    kv_bytes: int | None,
    kv_tokens: int | None,
    chat_max_tokens: int,
    expected_output_tokens: int | None,
    max_batch_tokens: int,
    log: Callable[[str], None],
) -> JobPlan:
    """Plans the lines of files.input that `run` would answer, and writes the other files.

    kv_bytes or kv_tokens: the KV pool; by default KV_SHARE of the device's memory after the weights.

    Raises OSError or ValueError before anything is written.
    """
    files.check(model)
    config_path = find_config(model)
    config = replace(describe_model(config_path, backend), dtype=device.dtype)
    if kv_tokens is None:
        kv_tokens = (kv_bytes or free_bytes(config, device)) // config.kv_bytes_per_token
    if kv_tokens < PAGE_SIZE:
        raise ValueError(f"KV memory: expected at least one page ({PAGE_SIZE} tokens), got {kv_tokens} tokens")
    kv_tokens -= kv_tokens % PAGE_SIZE
    if config.backend != "native":
        log(f"{config.architecture} runs by backend {config.backend}, on a CPU alone")
    limits = RequestLimits(
        config.vocab_size,
        config.max_model_len,
        PAGE_SIZE,
        kv_tokens,
        most_pages=config.most_pages(PAGE_SIZE, max_batch_tokens),
    )
    log(f"reading {files.input}")
    with open_source(files.input, chat_max_tokens=chat_max_tokens) as source:
        job, errors = read_job(source, WeightlessModel(model_path(config_path), limits))
        log_errors(errors, log)
        if job.num_requests == 0:
            raise ValueError(f"input {str(files.input)!r}: no line that could run")
        if files.num_shards > job.num_lines:
            raise ValueError(
                f"shards: expected at most {job.num_lines}, the lines that can run, got {files.num_shards}"
            )
        given = Assumptions(model_name(model), config, device, kv_tokens, expected_output_tokens, max_batch_tokens)
        trie = ext.PrefixTrie(job.tokens, job.indptr, drop_last=1)
        plan, simulations = plan_job(job, trie, len(errors), given, log)
        if files.shards_directory:
            outputs = given.output_tokens(job.max_output_tokens)
            shards = write_shards(
                source.path,
                files.shards_directory,
                files.num_shards,
                job,
                trie,
                outputs,
                config,
                device,
                overwrite=files.overwrite,
            )
            plan = msgspec.structs.replace(plan, shards=shards)
    if files.plot:
        from batchllm.reports.plot import save_plot

        save_plot(files.plot, plan, simulations, overwrite=files.overwrite)
    if files.errors:
        job_id = new_job_id()
        records = b"".join(error_record(error, job_id) for error in errors)
        write_file("errors", files.errors, records, overwrite=files.overwrite)
    if files.json:
        json = msgspec.json.format(msgspec.json.encode(plan)) + b"\n"
        write_file("json", files.json, json, overwrite=files.overwrite)
    return plan


def find_config(model: str) -> Path:
    """config.json of a model: the file itself, or the one of its directory or hub id, without fetching weights; or a
    GGUF file."""
    path = Path(model).expanduser()
    return path if path.is_file() else config_file(resolve_model(model, weights=False))


def model_path(config_path: Path) -> Path:
    """The directory of a config.json, or a GGUF file itself."""
    return config_path if is_gguf(config_path) else config_path.parent


def model_name(model: str) -> str:
    path = Path(model).expanduser().resolve()
    return model_path(path).name if path.is_file() else path.name


def free_bytes(model: ModelDescription, device: Device) -> int:
    weights = weight_bytes(model, device)
    free = int(KV_SHARE * (device.memory_bytes - weights))
    if free <= 0:
        raise ValueError(
            f"device {device.name}: its {device.memory_bytes / 2**30:.0f} GiB do not hold the model's weights, "
            f"{weights / 2**30:.0f} GiB; say how much KV memory there is (--kv-memory)"
        )
    return free


def log_errors(errors: list[LineError], log: Callable[[str], None]) -> None:
    for error in errors[:LISTED_ERRORS]:
        log(f"line {error.line}: {error}")
    if len(errors) > LISTED_ERRORS:
        log(f"... and {len(errors) - LISTED_ERRORS:,} more lines that cannot run")
