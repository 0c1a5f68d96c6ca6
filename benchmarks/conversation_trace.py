"""Reads a conversation trace in Mooncake's format and expands it to prompts.

A line is an object with input_length, output_length and hash_ids: one id for each 512 tokens of the prompt, the same
id where prompts share all text up to the end of those tokens. A path that ends in .gz is unpacked.

    python benchmarks/conversation_trace.py conversation_trace.jsonl
"""

from __future__ import annotations

import argparse
import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BLOCK_TOKENS = 512
MAX_HASH_IDS = (1 << 31) // BLOCK_TOKENS  # tokens are int32
SLICE = Path(__file__).parent / "data" / "conversation_trace_slice.jsonl.gz"  # see SOURCES.md beside it


@dataclass(frozen=True)
class Trace:
    tokens: np.ndarray  # int32 [sum of prompt lengths]
    indptr: np.ndarray  # int64 [num_requests + 1]
    output_lengths: np.ndarray  # int32 [num_requests], at least 1 each

    @property
    def num_requests(self) -> int:
        return len(self.output_lengths)


def read_trace(path: Path | str, max_requests: int | None = None) -> Trace:
    """The prompts of the first max_requests lines, in order of arrival.

    Token j of block i is 512 i + j: blocks of different ids have no token in common, and equal ids equal tokens.
    ValueError names the file, the line, what was expected and what came.
    """
    path = Path(path)
    input_lengths: list[int] = []
    output_lengths: list[int] = []
    hash_ids: list[int] = []
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for number, line in enumerate(lines, start=1):
            if len(input_lengths) == max_requests:
                break
            try:
                input_length, output_length, ids = parse_line(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from None
            input_lengths.append(input_length)
            output_lengths.append(output_length)
            hash_ids += ids
    indptr = np.zeros(len(input_lengths) + 1, np.int64)
    np.cumsum(input_lengths, out=indptr[1:])
    tokens = expand(np.array(hash_ids, np.int32), indptr)
    return Trace(tokens, indptr, np.array(output_lengths, np.int32))


def parse_line(line: str) -> tuple[int, int, list[int]]:
    """(input_length, output_length, hash_ids) of one line."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {line.strip()[:40]}")
    for name in ("input_length", "output_length"):
        if not is_integer(row.get(name)) or row[name] < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {row.get(name)!r}")
    ids = row.get("hash_ids")
    num_blocks = -(-row["input_length"] // BLOCK_TOKENS)
    if not isinstance(ids, list) or len(ids) != num_blocks:
        got = f"{len(ids)} ids" if isinstance(ids, list) else repr(ids)
        raise ValueError(f"hash_ids: expected {num_blocks} ids for {row['input_length']} tokens, got {got}")
    for hash_id in ids:
        if not is_integer(hash_id) or not 0 <= hash_id < MAX_HASH_IDS:
            raise ValueError(f"hash_ids: expected integers from 0 to {MAX_HASH_IDS - 1}, got {hash_id!r}")
    return row["input_length"], row["output_length"], ids


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def expand(hash_ids: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """hash_ids int32 [blocks of all prompts], indptr int64 [n + 1] of tokens -> tokens int32 [indptr[-1]]"""
    lengths = np.diff(indptr)
    num_blocks = -(-lengths // BLOCK_TOKENS)
    block_lengths = np.full(len(hash_ids), BLOCK_TOKENS)
    block_lengths[np.cumsum(num_blocks) - 1] -= num_blocks * BLOCK_TOKENS - lengths
    position = np.arange(BLOCK_TOKENS, dtype=np.int32)
    return (hash_ids[:, None] * BLOCK_TOKENS + position)[position < block_lengths[:, None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, nargs="?", default=SLICE, help="default: the slice in benchmarks/data")
    trace = read_trace(parser.parse_args().path)
    print(
        f"{trace.num_requests} requests, {len(trace.tokens)} prompt tokens, {trace.output_lengths.sum()} output tokens"
    )


if __name__ == "__main__":
    main()
