"""Cuts a batch file into several, one per machine: whole lines, depth-first, of equal predicted cost."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import batchllm_ext as ext
from batchllm.estimate.attention_work import num_attention_pairs
from batchllm.estimate.partition import ShardFigures, partition, shard_costs
from batchllm.estimate.roofline import Device
from batchllm.estimate.tokenized_job import TokenizedJob
from batchllm.jobs.depth_first import DepthFirst
from batchllm.jobs.files import RecordFile, lock
from batchllm.jobs.inputs import without_bom
from batchllm.models.description import ModelDescription

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def shard_paths(directory: Path, num_shards: int) -> list[Path]:
    return [directory / f"shard-{shard:04}-of-{num_shards:04}.jsonl" for shard in range(1, num_shards + 1)]


def write_shards(
    input: Path,
    directory: Path,
    num_shards: int,
    job: TokenizedJob,
    trie: ext.PrefixTrie,
    output_tokens: NDArray[np.int32],
    model: ModelDescription,
    device: Device,
    *,
    overwrite: bool = False,
) -> list[ShardFigures]:
    """Writes shard_paths(directory, num_shards), the directory included; overwrite: replaces files that are not empty.

    trie: of the job's requests without the last token of each. output_tokens: int32 [num_requests].

    A line keeps its bytes (except byte order marks). Lines are ordered by the first of their requests in the trie's
    order, and cost as in `request_costs`. Raises ValueError for more shards than lines; OSError for a directory that
    another plan writes shards to, and like RecordFile.
    """
    lines = LineSequence.of(job, DepthFirst.of_trie(trie))
    costs = request_costs(job, lines, output_tokens, model, device)
    line_cost = np.add.reduceat(costs.seconds, lines.indptr[:-1])
    path_cost = costs.path_seconds[lines.indptr[:-1]]
    cuts = partition(line_cost, path_cost, num_shards)

    directory.mkdir(exist_ok=True)
    paths = shard_paths(directory, num_shards)
    texts = pick_lines(input, job.line_numbers[lines.line])
    with locked_directory(directory):
        for path, num_lines in zip(paths, np.diff(cuts), strict=True):
            with RecordFile("shard", path, overwrite=overwrite) as file:
                file.cut()
                for text in itertools.islice(texts, num_lines):
                    file.write(text)

    lengths = np.diff(job.indptr)[lines.request]
    computed = np.add.reduceat(lengths - lines.shared_tokens, lines.indptr[:-1])
    replicated = lines.shared_tokens[lines.indptr[cuts[:-1]]]
    seconds = shard_costs(line_cost, path_cost, cuts)
    return [
        ShardFigures(
            file=str(path),
            lines=int(end - begin),
            requests=int(lines.indptr[end] - lines.indptr[begin]),
            prompt_tokens=int(lengths[lines.indptr[begin] : lines.indptr[end]].sum()),
            computed_prompt_tokens=int(computed[begin:end].sum() + replicated[shard]),
            replicated_tokens=int(replicated[shard]),
            output_tokens=int(output_tokens[lines.request[lines.indptr[begin] : lines.indptr[end]]].sum()),
            predicted_s=float(seconds[shard]),
        )
        for shard, (path, begin, end) in enumerate(zip(paths, cuts[:-1], cuts[1:], strict=True))
    ]


@dataclass(frozen=True)
class LineSequence:
    """The lines of a job depth-first, and their requests one after another."""

    line: IntArray  # [num_lines]: place -> line of the job
    indptr: IntArray  # [num_lines + 1]: requests of a place
    request: IntArray  # [num_requests]: position in the sequence -> request
    shared_tokens: IntArray  # [num_requests]: computed for the request before it in the sequence; 0 for the first

    @classmethod
    def of(cls, job: TokenizedJob, order: DepthFirst) -> LineSequence:
        rank = np.empty(job.num_requests, np.int64)
        rank[order.request] = np.arange(job.num_requests)
        num_requests = np.diff(job.line_indptr)
        line = np.argsort(np.minimum.reduceat(rank, job.line_indptr[:-1]))
        place = np.empty(len(line), np.int64)
        place[line] = np.arange(len(line))
        request = np.lexsort((rank, np.repeat(place, num_requests)))
        shared = order.shared_tokens[rank[request]]
        for at in np.flatnonzero(np.diff(rank[request]) != 1) + 1:  # pulled out of that order by its line
            shared[at] = num_shared_tokens(job.prompt(request[at - 1]), job.prompt(request[at]))
        return cls(
            line=line,
            indptr=np.concatenate(([0], np.cumsum(num_requests[line]))),
            request=request,
            shared_tokens=shared,
        )


def num_shared_tokens(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """Tokens that two prompts share; the last token of a prompt is never shared, because its logits are needed."""
    length = min(len(a), len(b)) - 1
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


@dataclass(frozen=True)
class RequestCosts:
    """Costs of the requests of a sequence, [num_requests]."""

    seconds: FloatArray  # for what it computes and the request before it does not
    path_seconds: FloatArray  # for what it shares with the request before it, if computed again


def request_costs(
    job: TokenizedJob, lines: LineSequence, output_tokens: NDArray[np.int32], model: ModelDescription, device: Device
) -> RequestCosts:
    """A model of the seconds each request adds to a job on the device, which is kept busy.

    Every token costs its FLOPs: twice the weights that it is multiplied with, and 4 * num_qo_heads * head_dim per layer
    for each position it sees there. A prompt token that several requests share is paid by the first of them, and again
    by each shard that needs it. A generated token also costs the bytes of the K and V it reads, for all that it sees,
    because the engine that runs the shard may not read a shared prefix once for all.
    """
    flops_s = 1 / (device.flops_per_s * device.matmul_efficiency)
    linear_s, logits_s = 2 * model.num_linear_parameters * flops_s, 2 * model.num_logit_parameters * flops_s
    attention_flops_per_s = device.flops_per_s * device.attention_efficiency

    def attention_s(num_rows: FloatArray) -> FloatArray:
        seconds: FloatArray = model.attention_flops(partial(num_attention_pairs, num_rows)) / attention_flops_per_s
        return seconds

    shared = lines.shared_tokens.astype(np.float64)
    prompt = np.diff(job.indptr)[lines.request].astype(np.float64)
    outputs = output_tokens[lines.request].astype(np.float64)
    computed = prompt + outputs - 1  # the last sampled token is never computed
    path_s = linear_s * shared + attention_s(shared)
    whole_s = linear_s * computed + attention_s(computed) + logits_s * outputs
    read_bytes = model.kv_bytes(
        lambda window_left: num_attention_pairs(computed, window_left) - num_attention_pairs(prompt, window_left)
    )
    decode_s = read_bytes / (device.bytes_per_s * device.bandwidth_efficiency)
    return RequestCosts(seconds=whole_s - path_s + decode_s, path_seconds=path_s)


@contextmanager
def locked_directory(directory: Path) -> Iterator[None]:
    """Locks the directory: shards of two plans in it would belong to neither."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        lock(descriptor, f"shards {str(directory)!r}")
        yield
    finally:
        os.close(descriptor)


def pick_lines(path: Path, line_numbers: IntArray) -> Iterator[bytes]:
    """Those lines of the file, from 1, in that order, each ended by a newline."""
    with path.open("rb") as file:
        ends = np.cumsum([len(line) for line in file])
        for number in line_numbers:
            begin = ends[number - 2] if number > 1 else 0
            file.seek(begin)
            text = without_bom(file.read(ends[number - 1] - begin))
            yield text if text.endswith(b"\n") else text + b"\n"
