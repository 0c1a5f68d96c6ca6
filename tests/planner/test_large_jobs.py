"""Jobs whose sizes need 64 bits, in memory that is mapped and hardly touched; and jobs that threads share."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

import batchllm_ext as ext
from tests.planner.replay import ragged

TRIE_ARRAYS = ("order", "parent", "token_begin", "token_end", "request_begin", "request_end")
SEGMENT_ARRAYS = ("parent", "token_begin", "token_end", "owner_request", "num_readers", "request_segment")
INT32_MAX = 2**31 - 1


def map_job(path: Path, prompts: list[list[int]], lengths: list[int]) -> tuple[np.memmap, np.ndarray]:
    """Prompts filled up with zeros to their lengths, in a file with holes: tokens int32[sum], indptr int64[n + 1]."""
    indptr = np.zeros(len(prompts) + 1, np.int64)
    np.cumsum(lengths, out=indptr[1:])
    with path.open("wb") as file:
        for prompt, begin in zip(prompts, indptr.tolist(), strict=False):
            file.seek(4 * begin)
            file.write(np.array(prompt, np.int32).tobytes())
        file.truncate(4 * int(indptr[-1]))
    return np.memmap(path, np.int32, "r"), indptr


def test_a_mapped_job_of_more_than_two_to_the_32_tokens_is_exact(tmp_path: Path) -> None:
    prompts = [[3], [5, 5, 5, 1], [5, 5, 1], [5, 5, 2], [4], [-5, 7, 1], [5, 5, 5, 9, 1], [4, 4], [-5, 7, 2]]
    long = INT32_MAX - 8  # with its output a prompt may have 2^31 - 1 tokens
    lengths = [long if len(prompt) == 1 else len(prompt) for prompt in prompts]
    lengths[3] = long  # reads two shared tokens, then its own
    tokens, indptr = map_job(tmp_path / "tokens", prompts, lengths)
    assert indptr[5] > 2**32
    cut = [prompt + [0] * (min(length, 12) - len(prompt)) for prompt, length in zip(prompts, lengths, strict=True)]
    short_tokens, short_indptr = ragged(cut)

    trie = ext.PrefixTrie(tokens, indptr, drop_last=1)
    short_trie = ext.PrefixTrie(short_tokens, short_indptr, drop_last=1)
    for name in TRIE_ARRAYS:
        assert np.array_equal(getattr(trie, name), getattr(short_trie, name)), name
    assert trie.num_tokens == short_trie.num_tokens + 3 * (long - 12)

    segments, short_segments = ext.choose_segments(trie), ext.choose_segments(short_trie)
    for name in SEGMENT_ARRAYS:
        assert np.array_equal(getattr(segments, name), getattr(short_segments, name)), name
    assert segments.saved_tokens == short_segments.saved_tokens > 0
    assert segments.prompt_tokens == indptr[-1] == short_segments.prompt_tokens + 3 * (long - 12)

    planner = ext.BatchPlanner(
        tokens, indptr, segments, max_output_tokens=np.full(len(prompts), 8, np.int32), num_pages=100
    )
    assert [request for request, _ in planner.refused] == [0, 3, 4]
    assert f"needs {-(-(long + 7) // 16)} KV pages" in planner.refused[0][1]
    assert sorted(planner.order.tolist()) == [1, 2, 5, 6, 7, 8]


def test_a_reader_cost_beyond_any_gain_does_not_overflow() -> None:
    # 2^30 tokens in units of 1/65536, times 2^17 readers, is 2^63.
    num_readers, deepest = 1 << 17, 1 << 30
    lengths = [deepest, deepest] + [3] * num_readers
    indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    with mmap.mmap(-1, 4 * int(indptr[-1]), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)  # reading maps the one huge page of zeros
        tokens = np.frombuffer(memory, np.int32)
        tokens[indptr[2] :] = np.stack(
            [np.ones(num_readers), np.full(num_readers, 2), np.arange(num_readers)], axis=1
        ).ravel()
        trie = ext.PrefixTrie(tokens, indptr)
        assert trie.token_end.tolist() == [0, deepest, 2]
        for levels in (None, 1):
            assert ext.choose_segments(trie, levels, reader_cost=float("inf")).num_segments == 0
            assert ext.choose_segments(trie, levels, reader_cost=1.0).num_segments == 2
        saved_tokens = ext.choose_segments(trie).saved_tokens
        del trie, tokens
    assert saved_tokens == deepest + 2 * (num_readers - 1)


def test_segments_to_the_longest_prompt_are_counted_exactly() -> None:
    num_readers = 1000
    segments = ext.Segments(
        np.array([-1, 0], np.int32),
        np.array([0, INT32_MAX - 1], np.int32),
        np.array([INT32_MAX - 1, INT32_MAX], np.int32),
        np.array([0, 0], np.int32),
        np.ones(num_readers, np.int32),
    )
    assert segments.num_readers.tolist() == [num_readers, num_readers]
    assert segments.saved_tokens == (num_readers - 1) * INT32_MAX


@pytest.fixture(scope="module")
def shared_job() -> tuple[np.ndarray, np.ndarray]:
    """100,000 prompts of 40 to 80 tokens on three levels: enough for threads to share."""
    rng = np.random.default_rng(0)
    rows = rng.integers(-3, 4, (100_000, 80), np.int32)
    rows[:, :10] = 1
    rows[:, 10:40] = rng.integers(0, 9, (500, 30), np.int32)[rng.integers(0, 500, len(rows))]
    lengths = rng.integers(40, 81, len(rows))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return rows[np.arange(80) < lengths[:, None]], indptr


@pytest.mark.parametrize("num_threads", [2, 3, 0])
def test_threads_do_not_change_the_plan(shared_job: tuple[np.ndarray, np.ndarray], num_threads: int) -> None:
    tokens, indptr = shared_job
    one = ext.PrefixTrie(tokens, indptr, drop_last=1, num_threads=1)
    more = ext.PrefixTrie(tokens, indptr, drop_last=1, num_threads=num_threads)
    for name in TRIE_ARRAYS:
        assert np.array_equal(getattr(one, name), getattr(more, name)), name
    one_segments, more_segments = ext.choose_segments(one, reader_cost=2.0), ext.choose_segments(more, reader_cost=2.0)
    for name in SEGMENT_ARRAYS:
        assert np.array_equal(getattr(one_segments, name), getattr(more_segments, name)), name
    max_output = (1 + np.arange(len(indptr) - 1) % 50).astype(np.int32)
    orders = [
        ext.BatchPlanner(tokens, indptr, segments, max_output_tokens=max_output, num_pages=1000).order
        for segments in (one_segments, more_segments)
    ]
    assert np.array_equal(orders[0], orders[1])


def test_a_trie_that_threads_built_passes_its_audit(shared_job: tuple[np.ndarray, np.ndarray]) -> None:
    ext.PrefixTrie(*shared_job, num_threads=2).audit()


@pytest.mark.parametrize(
    "limits",
    [
        {"num_pages": INT32_MAX, "page_size": 1},
        {"num_pages": 3, "page_size": INT32_MAX},
        {"num_pages": INT32_MAX, "page_size": INT32_MAX, "max_batch_tokens": INT32_MAX},
        {"num_pages": INT32_MAX, "max_running_requests": INT32_MAX},
    ],
    ids=str,
)
@pytest.mark.parametrize("expected", [None, INT32_MAX])
def test_limits_up_to_the_largest_int32_are_limits_like_others(limits: dict[str, int], expected: int | None) -> None:
    prompts = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 5, 6]]
    tokens, indptr = ragged(prompts)
    bounds = np.array([INT32_MAX - len(prompt) for prompt in prompts], np.int32)
    if limits.get("page_size", 16) < INT32_MAX:
        bounds //= 4  # all fit, so nothing is refused or waits
    planner = ext.BatchPlanner(
        tokens,
        indptr,
        ext.choose_segments(ext.PrefixTrie(tokens, indptr, drop_last=1)),
        max_output_tokens=bounds,
        expected_output_tokens=None if expected is None else bounds,
        **limits,
    )
    if limits["num_pages"] > 3:
        assert planner.refused == []
    while (batch := planner.next_batch()) is not None:
        assert batch.positions.min() >= 0
        assert batch.slots.min() >= 0
        assert batch.segment_page_ids.max() < len(prompts) * 40
        planner.audit()
        request_ids = batch.logit_request_ids
        lengths = np.array([len(planner.output_tokens(request)) for request in request_ids])
        planner.commit(np.full(len(request_ids), 7, np.int32), lengths == 2)
    finished = planner.stats["finished"]
    assert finished + len(planner.refused) == len(prompts)
    assert planner.stats["output_tokens"] == 3 * finished
    assert planner.stats["used_pages"] == 0


def test_prompts_and_outputs_together_stay_within_int32(tmp_path: Path) -> None:
    tokens, indptr = map_job(tmp_path / "tokens", [[1], [2]], [INT32_MAX - 3, 5])
    segments = ext.choose_segments(ext.PrefixTrie(tokens, indptr, drop_last=1))
    options = {"num_pages": INT32_MAX, "page_size": 1 << 20}
    planner = ext.BatchPlanner(tokens, indptr, segments, max_output_tokens=np.array([3, 1], np.int32), **options)
    assert planner.refused == []
    with pytest.raises(ValueError, match=r"max_output_tokens\[0\]: prompt and output together exceed 2\^31 - 1 tokens"):
        planner.add_requests(tokens, indptr, segments, max_output_tokens=np.array([4, 1], np.int32))
    assert planner.stats["num_requests"] == 2
    while planner.stats["steps"] < 3:  # 1,024 tokens each
        batch = planner.next_batch()
        planner.commit(np.zeros(len(batch.logit_rows), np.int32))
    planner.audit()
