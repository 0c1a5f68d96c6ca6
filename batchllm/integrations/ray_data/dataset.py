"""A Dataset of prompts becomes one with their answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset

from batchllm.integrations.ray_data.cluster import LOST, Replicas, halved
from batchllm.integrations.ray_data.reader import WeightlessReader
from batchllm.integrations.ray_data.replica import Answer, Replica
from batchllm.jobs.job_prompts import JobPrompts
from batchllm.jobs.line import CHAT, COMPLETION, BatchRequest, Conversation, LineError
from batchllm.jobs.parcels import pack_lines, parcels_of, tokenized_job, unpack_lines
from batchllm.jobs.reading import tokenized
from batchllm.options import EngineOptions
from batchllm.sampling_params import SamplingParams

ANSWER_COLUMNS = {
    "answer": pa.string(),  # the first completion's text; null on an error
    "completions": pa.list_(pa.string()),  # the texts of all
    "finish_reason": pa.string(),
    "error": pa.string(),
    "prompt_tokens": pa.int64(),
    "cached_tokens": pa.int64(),  # of them, those that were not computed for this row
    "completion_tokens": pa.int64(),
}
ROW = "__batchllm_row"  # a row's index in the given Dataset


def answer_dataset(
    dataset: Dataset,
    model: str | Path,
    params: SamplingParams | None = None,
    *,
    replicas: int,
    column: str = "prompt",
    **engine_options: Any,
) -> Dataset:
    """The same rows, in any order, with answers: ANSWER_COLUMNS beside their own.

    The driver reads and plans the whole Dataset, and all of it is answered before this returns. A row that cannot be
    answered has an error instead; so does a row that, alone, ended its process 3 times.

    params: for every row; by default the model's, as in LLM.generate. A row that draws is seeded by its index.
    replicas: number of engines. Each has a GPU if `device` is "cuda", and num_threads CPUs, by default as many as let
        all of them fit.
    column: text, token ids, or conversations (lists of messages with role and content).
    engine_options: those of LLM.

    Raises ValueError that names the faulty column, option or file, before anything runs; also if no replica starts.
    """
    options = EngineOptions(**engine_options)
    table = whole_table(dataset, column)
    reader = WeightlessReader(model, options)
    params = params or SamplingParams(**reader.sampling_defaults)
    prompts, errors = read_rows(table[column].to_pylist(), column, params, reader, options.seed)
    pool = Replicas.of(replicas, options.num_threads, options.device)
    answered: list[ray.ObjectRef] = []  # tables, in the driver's own keeping: what nodes have goes with them
    back: set[int] = set()
    parcels: list[list[int]] = []  # of lines of `prompts`
    if len(prompts):
        job = tokenized_job(prompts, reader.limits)
        parcels = [parcel.tolist() for parcel in parcels_of(job, reader.config, reader.device, replicas)]

    def pack(parcel: list[int]) -> dict[str, Any]:
        return {"lines": pack_lines(prompts, parcel), "rows": taken(table, [row_of(prompts, line) for line in parcel])}

    constructor = {"model": reader.name, "engine": engine_options | {"num_threads": pool.num_threads}}
    while parcels:
        for result in pool.answer(parcels, pack, lambda: None, DatasetReplica, **constructor):
            if isinstance(result, str):
                raise ValueError(result)
            back |= set(result[ROW].to_pylist())
            answered.append(ray.put(result.drop_columns([ROW])))
        left = [[line for line in parcel if row_of(prompts, line) not in back] for parcel in parcels]
        for parcel, lost in zip(parcels, left, strict=True):
            if lost and len(parcel) == 1:
                errors.append(LineError("no_answer", None, LOST).at(prompts.line_number(lost[0]), None))
        parcels = [half for parcel, lost in zip(parcels, left, strict=True) if len(parcel) > 1 for half in halved(lost)]
    failed = with_answers(taken(table, [(error.line or 0) - 1 for error in errors]), list(errors))
    return ray.data.from_arrow_refs([ray.put(failed.drop_columns([ROW])), *answered])


def whole_table(dataset: Dataset, column: str) -> pa.Table:
    """All rows, with their indices. Raises ValueError if a column is missing or already taken."""
    names = dataset.columns() or []
    if column not in names:
        raise ValueError(f"column: expected one of {', '.join(names)}, got {column!r}")
    if taken := [name for name in (*ANSWER_COLUMNS, ROW) if name in names]:
        raise ValueError(f"dataset: has a column {taken[0]!r} already")
    table = pa.concat_tables(ray.get(dataset.to_arrow_refs()), promote_options="permissive")
    return table.append_column(ROW, pa.array(range(table.num_rows), pa.int64()))


def read_rows(
    values: list[Any], column: str, params: SamplingParams, reader: WeightlessReader, seed: int
) -> tuple[JobPrompts, list[LineError]]:
    """Rows as lines, numbered from 1."""
    requests = (request_of(row, value, column, params) for row, value in enumerate(values))
    prompts, errors = JobPrompts(), []
    for line in tokenized(requests, reader, seed=seed):
        if isinstance(line, LineError):
            errors.append(line)
        else:
            prompts.add(line)
    return prompts, errors


def request_of(row: int, value: Any, column: str, params: SamplingParams) -> BatchRequest | LineError:
    is_chat = isinstance(value, list) and bool(value) and all(isinstance(message, dict) for message in value)
    if is_chat:
        value = Conversation([{k: v for k, v in message.items() if v is not None} for message in value])
    elif not isinstance(value, (str, list)):
        reason = f"expected text, token ids or messages, got {type(value).__name__}"
        return LineError("invalid_prompt", column, reason).at(row + 1, None)
    kind = CHAT if is_chat else COMPLETION
    return BatchRequest(row + 1, str(row), kind, None, [value], params, prompt_place=column)


def row_of(prompts: JobPrompts, line: int) -> int:
    return prompts.line_number(line) - 1


class DatasetReplica(Replica):
    """Answers a parcel as rows with their own columns."""

    def __call__(self, parcel: dict[str, Any]) -> pa.Table | str:
        """parcel: rows, and lines as pack_lines makes them. Returns those that are answered, or why none can be."""
        rows = parcel["rows"]
        if self.fatal:
            return self.fatal
        lines = unpack_lines(parcel["lines"])
        answers: dict[int, Answer] = {}
        try:
            for request, answer in self.answers(lines):
                answers[request.line] = answer
        except Exception as error:
            if len(lines) == 1:
                answers[lines[0].request.line] = LineError("no_answer", None, f"{type(error).__name__}: {error}")
        answered = [at for at, line in enumerate(lines) if line.request.line in answers]
        return with_answers(taken(rows, answered), [answers[lines[at].request.line] for at in answered])


def with_answers(rows: pa.Table, answers: Sequence[Answer]) -> pa.Table:
    cells = [answer_cells(answer) for answer in answers]
    for name, kind in ANSWER_COLUMNS.items():
        rows = rows.append_column(name, pa.array([cell.get(name) for cell in cells], kind))
    return rows


def answer_cells(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, LineError):
        return {"error": str(answer)}
    [output] = answer
    first = output.outputs[0]
    return {
        "answer": first.content or "",
        "completions": [completion.content or "" for completion in output.outputs],
        "finish_reason": first.finish_reason,
        "prompt_tokens": len(output.prompt_token_ids),
        "cached_tokens": output.num_cached_tokens,
        "completion_tokens": sum(len(completion.token_ids) for completion in output.outputs),
    }


def taken(table: pa.Table, rows: list[int]) -> pa.Table:
    return table.take(pa.array(rows, pa.int64()))
