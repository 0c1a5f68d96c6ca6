"""Cuts a job into parcels for replicas, and packs a parcel as bytes with all that a replica needs to answer it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from batchllm.estimate.packing import largest_first, pack
from batchllm.estimate.roofline import Device
from batchllm.estimate.tokenized_job import TokenizedJob
from batchllm.jobs.depth_first import depth_first
from batchllm.jobs.job_prompts import JobPrompts
from batchllm.jobs.line import KINDS, AnswerForm, BatchRequest
from batchllm.jobs.reading import TokenizedLine
from batchllm.jobs.shards import IntArray, LineSequence, request_costs
from batchllm.models.description import ModelDescription
from batchllm.requests import RequestLimits
from batchllm.sampling_params import SamplingParams


class PackedLine(msgspec.Struct):
    line: int  # of the input, from 1
    custom_id: str
    url: str
    model: str | None
    params: bytes  # SamplingParams
    form: AnswerForm
    prompts: list[tuple[bytes, bytes]]  # token ids, int32, and SamplingParams


_PACKED_LINES = msgspec.msgpack.Decoder(list[PackedLine])


@lru_cache(maxsize=1024)
def _params_of(packed: bytes) -> SamplingParams:
    """The same object for all equal ones, as most of a job's are."""
    return msgspec.msgpack.decode(packed, type=SamplingParams)


def tokenized_job(prompts: JobPrompts, limits: RequestLimits) -> TokenizedJob:
    """The prompts as the planner needs them. Tokens are copied only if a prompt has several completions."""
    num_completions = np.array([params.n for params in prompts.params], np.int64)
    lengths = np.repeat(np.diff(prompts.token_ids.indptr), num_completions)
    max_tokens = [
        limits.max_output_tokens(len(ids), params)
        for ids, params in zip(prompts.token_ids, prompts.params, strict=True)
    ]
    tokens: NDArray[np.int32] = prompts.token_ids.tokens
    if (num_completions > 1).any():
        tokens = np.concatenate([np.tile(ids, p.n) for ids, p in zip(prompts.token_ids, prompts.params, strict=True)])
    requests = np.concatenate(([0], np.cumsum(num_completions)))
    return TokenizedJob(
        line_numbers=np.array([prompts.line_number(line) for line in range(prompts.num_lines)], np.int64),
        line_indptr=requests[[prompts.of_line(line).start for line in range(prompts.num_lines)] + [-1]],
        tokens=tokens,
        indptr=np.concatenate(([0], np.cumsum(lengths))),
        max_output_tokens=np.repeat(np.array(max_tokens, np.int32), num_completions),
    )


def parcels_of(job: TokenizedJob, model: ModelDescription, device: Device, num_replicas: int) -> list[IntArray]:
    """The lines of each parcel, depth-first; the parcels in the order in which replicas take them, the most expensive
    first.

    Assumes that each answer is as long as it may be. Raises ValueError if num_replicas is less than 1."""
    if not job.num_lines:
        return []
    lines = LineSequence.of(job, depth_first(job))
    costs = request_costs(job, lines, job.max_output_tokens, model, device)
    line_cost = np.add.reduceat(costs.seconds, lines.indptr[:-1])
    path_cost = costs.path_seconds[lines.indptr[:-1]]
    cuts = pack(line_cost, path_cost, num_replicas)
    order = largest_first(line_cost, path_cost, cuts)
    return [lines.line[cuts[parcel] : cuts[parcel + 1]] for parcel in order]


def pack_lines(prompts: JobPrompts, lines: Iterable[int]) -> bytes:
    return msgspec.msgpack.encode([packed_line(prompts, line) for line in lines])


def packed_line(prompts: JobPrompts, line: int) -> PackedLine:
    request = prompts.request(line)
    params = msgspec.msgpack.encode(request.params)
    mine = [(prompts.token_ids[i].tobytes(), msgspec.msgpack.encode(prompts.params[i])) for i in prompts.of_line(line)]
    return PackedLine(request.line, request.custom_id, request.kind.url, request.model, params, request.form, mine)


def unpack_lines(parcel: bytes) -> list[TokenizedLine]:
    return [
        TokenizedLine(
            BatchRequest(
                *(packed.line, packed.custom_id, KINDS[packed.url], packed.model, (), _params_of(packed.params)),
                form=packed.form,
            ),
            [np.frombuffer(ids, np.int32).tolist() for ids, _ in packed.prompts],
            [_params_of(params) for _, params in packed.prompts],
        )
        for packed in _PACKED_LINES.decode(parcel)
    ]
