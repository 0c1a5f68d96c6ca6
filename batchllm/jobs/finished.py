"""Turns the records of a finished job into one file in the order of the lines, or into a Parquet file.

Until then they are in a journal, OUT.journal.jsonl, in order of completion. So an interrupted job resumes in the same
way whatever its output will be, and ordering costs only the memory of a number per line."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from batchllm.jobs.earlier import whole_records
from batchllm.jobs.files import replacing
from batchllm.jobs.inputs import optional_import
from batchllm.jobs.read_answers import Message

ROWS_AT_ONCE = 4096


def is_parquet(output: Path) -> bool:
    return output.suffix.lower() == ".parquet"


def check_library(output: Path) -> None:
    """Raises ValueError, before anything runs, if the library that writes the file is missing."""
    if is_parquet(output):
        optional_import("pyarrow", f"output {str(output)!r} is a Parquet file")


def write_finished(journal: Path, output: Path, job_id: str, *, ordered: bool) -> None:
    """Makes the output from a journal, durably and in one step: all of it or nothing. Raises OSError."""
    records = ordered_records(journal, job_id) if ordered else records_as_they_came(journal, job_id)
    with replacing(output, f"output {str(output)!r}", f"; the answers are in {str(journal)!r}") as file:
        if is_parquet(output):
            write_parquet(file, records)
        else:
            file.writelines(records)


def records_as_they_came(journal: Path, job_id: str) -> Iterator[bytes]:
    return (record for _, record in whole_records("output", journal, job_id))


def ordered_records(journal: Path, job_id: str) -> Iterator[bytes]:
    """By the number of their line."""
    lines, sizes = array("q"), array("q")
    for line, record in whole_records("output", journal, job_id):
        lines.append(line)
        sizes.append(len(record))
    ends = np.cumsum(sizes)
    with journal.open("rb") as file:
        for place in np.argsort(lines).tolist():
            file.seek(ends[place] - sizes[place])
            yield file.read(sizes[place])


def write_parquet(file: Any, records: Iterable[bytes]) -> None:
    """One row per record: the answer's text and its choices, or its scores, and the token counts."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    choice = pa.struct(
        {"index": pa.int32(), "text": pa.string(), "finish_reason": pa.string(), "stop_reason": pa.string()}
    )
    score = pa.struct(
        {"index": pa.int32(), "logprob": pa.float64(), "probability": pa.float64(), "is_greedy": pa.bool_()}
    )
    columns = {"line": pa.int64(), "custom_id": pa.string(), "model": pa.string(), "text": pa.string()}
    columns |= {"finish_reason": pa.string(), "choices": pa.list_(choice)}
    columns |= {"choice": pa.int32(), "scores": pa.list_(score), "perplexity": pa.float64()}
    columns |= dict.fromkeys(("prompt_tokens", "completion_tokens", "cached_tokens"), pa.int64())
    schema = pa.schema(columns)
    records = iter(records)
    with ParquetWriter(file, schema) as writer:
        while rows := [parquet_row(record) for record in islice(records, ROWS_AT_ONCE)]:
            writer.write_table(pa.Table.from_pylist(rows, schema))


def parquet_row(record: bytes) -> dict[str, Any]:
    answer = msgspec.json.decode(record)
    body = answer["response"]["body"]
    choices = [
        {
            "index": choice["index"],
            "text": msgspec.convert(choice["message"], Message).text() if "message" in choice else choice["text"],
            "finish_reason": choice["finish_reason"],
            "stop_reason": None if choice.get("stop_reason") is None else str(choice["stop_reason"]),
        }
        for choice in body.get("choices", ())
    ]
    first = choices[0] if choices else {}
    usage = body["usage"]
    return {
        "line": int(answer["id"][-16:], 16),
        "custom_id": answer["custom_id"],
        "model": body["model"],
        "text": first.get("text"),
        "finish_reason": first.get("finish_reason"),
        "choices": choices or None,
        "choice": body.get("choice"),
        "scores": body.get("scores"),
        "perplexity": body.get("perplexity"),
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
    }
