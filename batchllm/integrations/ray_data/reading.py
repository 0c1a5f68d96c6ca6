"""The lines of a large job made token ids of on all CPUs of a cluster, slice by slice."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any

import msgspec
import ray

from batchllm.integrations.ray_data.cluster import LOST, Replicas
from batchllm.integrations.ray_data.reader import WeightlessReader
from batchllm.jobs.earlier import EarlierRuns
from batchllm.jobs.job_prompts import JobPrompts
from batchllm.jobs.line import LineError
from batchllm.jobs.openai_batch import used_twice
from batchllm.jobs.parcels import pack_lines, unpack_lines
from batchllm.jobs.reading import TokenizedLine, tokenized
from batchllm.jobs.run import RunOptions, collected, with_defaults
from batchllm.jobs.sources import OpenAIBatch, Source
from batchllm.options import EngineOptions

SLICE_BYTES = 1 << 24  # of lines that go to a process at once; what a job has less of is read by the driver alone

Rows = list[tuple[int, bytes]]  # numbers of lines, and lines


class ReadSlice(msgspec.Struct):
    """What was made of a slice."""

    first_line: int
    lines: bytes  # as pack_lines makes them
    errors: list[LineError]  # of lines; a custom_id that stands twice is known only within a slice


class SliceReader:
    """source: whose rows they are. engine: options of LLM. seed: the job's."""

    def __init__(self, source: OpenAIBatch, model: str, engine: dict[str, Any], seed: int) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each CPU
        self._source, self._seed = source, seed
        self._reader = WeightlessReader(model, EngineOptions(**engine))

    def __call__(self, rows: Rows) -> ReadSlice | str:
        """Or why no job of such lines can run."""
        prompts = JobPrompts()
        errors: list[LineError] = []
        requests = with_defaults(self._source.parsed(rows), self._reader.sampling_defaults)
        try:
            for line in tokenized(requests, self._reader, seed=self._seed):
                if isinstance(line, LineError):
                    errors.append(line)
                else:
                    prompts.add(line)
        except ValueError as error:
            return str(error)
        return ReadSlice(rows[0][0], pack_lines(prompts, range(prompts.num_lines)), errors)


def is_large(source: Source) -> bool:
    """Whether it is worth the start of processes. Rows of tables are made by the driver."""
    return isinstance(source, OpenAIBatch) and source.path.stat().st_size > SLICE_BYTES


def read_on_cluster(
    source: Source,
    model: str,
    engine: dict[str, Any],
    earlier: EarlierRuns,
    options: RunOptions,
    check_time: Callable[[], None],
) -> tuple[JobPrompts, list[LineError]]:
    """What read_prompts makes of the same lines. Raises ValueError for a slice whose process ends again and again."""
    slices = [(rows[0][0], ray.put(rows)) for rows in sliced(source.chosen(earlier.done()))]
    readers = Replicas(int(ray.cluster_resources()["CPU"]), num_threads=1, num_gpus=0)
    constructor = {"source": source, "model": model, "engine": engine, "seed": options.seed}
    results = readers.answer(slices, itemgetter(1), check_time, SliceReader, **constructor)
    return collected(lines_in_order(results, [first for first, _ in slices], source.name), options, check_time)


def sliced(rows: Iterable[tuple[int, bytes]]) -> Iterator[Rows]:
    some: Rows = []
    num_bytes = 0
    for line, row in rows:
        some.append((line, row))
        num_bytes += len(row)
        if num_bytes > SLICE_BYTES:
            yield some
            some, num_bytes = [], 0
    if some:
        yield some


def lines_in_order(
    results: Iterable[ReadSlice | str], first_lines: Iterable[int], name: str
) -> Iterator[TokenizedLine | LineError]:
    """All lines of all slices, each custom_id once: it is the first line's that has it, be that good or bad."""
    line_of: dict[str, int] = {}
    waiting = deque(first_lines)
    early: dict[int, ReadSlice] = {}
    for result in results:
        if isinstance(result, str):
            raise ValueError(result)
        early[result.first_line] = result
        while waiting and waiting[0] in early:
            read = early.pop(waiting.popleft())
            for number, custom_id, line in sorted(numbered(read), key=itemgetter(0)):
                if custom_id is not None and (first := line_of.setdefault(custom_id, number)) != number:
                    line = used_twice(custom_id, first).at(number, custom_id)
                yield line
    if waiting:
        raise ValueError(f"input {name!r}: lines from {waiting[0]} on: {LOST}")


def numbered(read: ReadSlice) -> Iterator[tuple[int, str | None, TokenizedLine | LineError]]:
    for line in unpack_lines(read.lines):
        yield line.request.line, line.request.custom_id, line
    for error in read.errors:
        yield error.line or 0, error.custom_id, error
