"""The trace reader: equal ids are equal text, different ids share nothing, wrong lines are named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

import batchllm_ext as ext
from benchmarks.conversation_trace import SLICE, Trace, parse_line, read_trace


def write(path: Path, *rows: tuple[int, int, list[int]]) -> Path:
    names = ("input_length", "output_length", "hash_ids")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return path


def prompts_of(trace: Trace) -> list[list[int]]:
    return [trace.tokens[begin:end].tolist() for begin, end in zip(trace.indptr, trace.indptr[1:], strict=False)]


def test_a_block_is_512_tokens_and_the_last_one_is_cut(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "t.jsonl", (513, 7, [0, 9]), (1, 8, [9]), (512, 9, [4_194_303])))
    assert (trace.tokens.dtype, trace.indptr.dtype, trace.output_lengths.dtype) == (np.int32, np.int64, np.int32)
    assert trace.indptr.tolist() == [0, 513, 514, 1026]
    assert trace.output_lengths.tolist() == [7, 8, 9]
    first, second, third = prompts_of(trace)
    assert first == [*range(512), 9 * 512]
    assert second == [9 * 512]
    assert third == list(range((1 << 31) - 512, 1 << 31))


def test_prompts_share_exactly_the_blocks_whose_ids_they_share(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [(int(rng.integers(1025, 1537)), 1, rng.integers(0, 4, 3).tolist()) for _ in range(60)]
    prompts = prompts_of(read_trace(write(tmp_path / "t.jsonl", *rows)))
    for (length, _, ids), prompt in zip(rows, prompts, strict=True):
        for (other_length, _, other_ids), other in zip(rows, prompts, strict=True):
            equal = [a == b for a, b in zip(ids, other_ids, strict=True)]
            blocks = equal.index(False) if False in equal else 3
            tokens_equal = [a == b for a, b in zip(prompt, other, strict=False)]
            common = tokens_equal.index(False) if False in tokens_equal else len(tokens_equal)
            assert common == min(512 * blocks, length, other_length)


def test_the_number_of_requests_can_be_bounded_and_a_trace_may_be_packed(tmp_path: Path) -> None:
    plain = write(tmp_path / "t.jsonl", (600, 1, [1, 2]), (700, 2, [1, 3]), (3, 3, [4]))
    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert prompts_of(read_trace(packed)) == prompts_of(read_trace(plain))
    assert prompts_of(read_trace(packed, max_requests=2)) == prompts_of(read_trace(plain))[:2]


def test_an_empty_trace_is_an_empty_job(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "t.jsonl"))
    assert trace.num_requests == len(trace.tokens) == 0
    assert trace.indptr.tolist() == [0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Expecting property name"),
        ("[1]", r"expected an object, got \[1\]"),
        ('{"output_length": 1, "hash_ids": []}', "input_length: expected an integer of at least 1, got None"),
        ('{"input_length": 0, "output_length": 1, "hash_ids": []}', "input_length: .* at least 1, got 0"),
        ('{"input_length": 5, "output_length": true, "hash_ids": [1]}', "output_length: .* at least 1, got True"),
        ('{"input_length": 5, "output_length": 1}', "hash_ids: expected 1 ids for 5 tokens, got None"),
        (
            '{"input_length": 513, "output_length": 1, "hash_ids": [1]}',
            "hash_ids: expected 2 ids for 513 tokens, got 1 ids",
        ),
        (
            '{"input_length": 5, "output_length": 1, "hash_ids": [4194304]}',
            "hash_ids: expected integers from 0 to 4194303, got 4194304",
        ),
        ('{"input_length": 5, "output_length": 1, "hash_ids": [-1]}', "hash_ids: .* got -1"),
    ],
)
def test_wrong_lines_are_named(line: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", (1, 1, [0]))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=f"t.jsonl:2: {message}"):
        read_trace(path)


def test_the_slice_parts_where_blocks_or_prompts_end() -> None:
    trace = read_trace(SLICE)
    trie = ext.PrefixTrie(trace.tokens, trace.indptr, drop_last=1)
    assert trace.num_requests == 400
    prompt_ends = set((np.diff(trace.indptr) - 1).tolist())
    assert all(end % 512 == 0 or end in prompt_ends for end in trie.token_end.tolist())
    with gzip.open(SLICE, "rt") as lines:
        assert len(trace.tokens) == sum(parse_line(line)[0] for line in lines)
