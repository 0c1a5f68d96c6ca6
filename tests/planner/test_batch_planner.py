"""BatchPlanner: every job ends, every row reads its own context, every page comes back."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batchllm_ext as ext
from tests.planner.replay import Replay, make_planner, never, ragged, replay, spans_of


def pages_for(num_tokens: int, page_size: int) -> int:
    return -(-num_tokens // page_size)


def random_job(rng: random.Random) -> tuple[list[list[int]], list[int]]:
    prompts: list[list[int]] = []
    for _ in range(rng.randint(1, 14)):
        base = rng.choice(prompts) if prompts and rng.random() < 0.7 else []
        head = base[: rng.randint(0, len(base))]
        prompts.append([*head, *(rng.randint(0, 2) for _ in range(rng.randint(0, 8)))] or [1])
    return prompts, [rng.randint(1, 9) for _ in prompts]


@settings(max_examples=600, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    page_size=st.sampled_from([1, 2, 16]),
    max_batch_tokens=st.sampled_from([1, 2, 3, 7, 64]),
    levels=st.sampled_from([None, 1, 0]),
    spare_pages=st.integers(-2, 8),
    early_finish=st.sampled_from([0, 3, 10]),
    expects=st.booleans(),
)
def test_every_job_ends_with_every_request_answered_once(
    seed: int,
    page_size: int,
    max_batch_tokens: int,
    levels: int | None,
    spare_pages: int,
    early_finish: int,
    expects: bool,
) -> None:
    rng = random.Random(seed)
    prompts, max_output = random_job(rng)
    largest = max(len(p) + m - 1 for p, m in zip(prompts, max_output, strict=True))
    num_pages = max(pages_for(largest, page_size) + spare_pages, 1)
    options = {"page_size": page_size, "max_batch_tokens": max_batch_tokens}
    if expects:
        options["expected_output_tokens"] = np.array([rng.randint(1, 9) for _ in prompts], np.int32)
    planner = make_planner(prompts, max_output, num_pages, levels=levels, **options)

    # Refused are exactly those that do not fit the pool alone.
    too_large = [
        request
        for request in range(len(prompts))
        if pages_for(len(prompts[request]) + max_output[request] - 1, page_size) > num_pages
    ]
    assert [request for request, _ in planner.refused] == too_large
    assert sorted([*planner.order.tolist(), *too_large]) == list(range(len(prompts)))

    def is_finished(request: int, num_output_tokens: int) -> bool:
        return early_finish > 0 and hash((seed, request, num_output_tokens)) % early_finish == 0

    result = replay(planner, prompts, page_size=page_size, max_batch_tokens=max_batch_tokens, is_finished=is_finished)
    for request, output in result.outputs.items():
        ends = [i for i in range(1, max_output[request] + 1) if is_finished(request, i)]
        assert len(output) == min([*ends, max_output[request]])


def test_preemption_is_exercised_by_small_pools() -> None:
    num_preemptions = 0
    for seed in range(50):
        prompts, max_output = random_job(random.Random(seed))
        largest = max(len(p) + m - 1 for p, m in zip(prompts, max_output, strict=True))
        planner = make_planner(
            prompts,
            max_output,
            largest + 8,
            page_size=1,
            expected_output_tokens=np.ones(len(prompts), np.int32),  # far too few: everything is admitted
        )
        replay(planner, prompts, page_size=1)
        stats = planner.stats
        num_preemptions += stats["preemptions"]
        assert (stats["recomputed_tokens"] > 0) == (stats["preemptions"] > 0)
        first_time = stats["prompt_tokens"] - stats["cached_prompt_tokens"]
        assert stats["computed_prompt_tokens"] - stats["recomputed_prompt_tokens"] == first_time
    assert num_preemptions > 50


def test_two_groups_that_would_pin_the_pool_between_them_both_end() -> None:
    # Each group's prefix takes 4 of 10 pages and each request 3 more at its longest: with both pinned, none could end.
    prompts = [[group] * 8 + [5, request] for group in (1, 2) for request in range(4)]
    for order in (prompts, prompts[::-1], prompts[::2] + prompts[1::2]):
        planner = make_planner(
            order, [5] * 8, 10, page_size=2, expected_output_tokens=np.ones(8, np.int32), max_batch_tokens=3
        )
        assert planner.refused == []
        replay(planner, order, page_size=2, max_batch_tokens=3)


@pytest.mark.parametrize("levels", [None, 1, 0])
@pytest.mark.parametrize("max_batch_tokens", [1, 5, 1024])
def test_a_shared_segment_is_computed_once(levels: int | None, max_batch_tokens: int) -> None:
    for seed in range(40):
        prompts, max_output = random_job(random.Random(seed))
        trie = ext.PrefixTrie(*ragged(prompts), drop_last=1)
        segments = ext.choose_segments(trie, levels)
        planner = make_planner(
            prompts, max_output, 400, segments=segments, page_size=2, max_batch_tokens=max_batch_tokens
        )
        result = replay(planner, prompts, page_size=2, max_batch_tokens=max_batch_tokens)
        stats = planner.stats
        assert stats["preemptions"] == 0
        assert stats["prompt_tokens"] == segments.prompt_tokens
        assert stats["computed_prompt_tokens"] == segments.prompt_tokens - segments.saved_tokens
        assert stats["cached_prompt_tokens"] == segments.saved_tokens
        if levels is None:  # and so is every prefix, but for the last token of each prompt
            inner = {tuple(p[:end]) for p in prompts for end in range(1, len(p))}
            ends = [tuple(p) for p in prompts]
            for context in inner:
                assert result.num_computed[context] == 1 + ends.count(context)


def test_a_prefix_is_charged_to_the_first_reader_that_starts() -> None:
    prompts = [[1, 2, 3, 4, request] for request in range(3)]
    planner = make_planner(prompts, [1, 1, 9], 100)
    replay(planner, prompts, page_size=16)
    assert planner.order.tolist() == [2, 0, 1]  # most to decode first
    assert [planner.num_cached_tokens(request) for request in range(3)] == [4, 4, 0]


def contexts_in_step(result: Replay, step: int) -> list[tuple[list[int], int]]:
    batch = result.batches[step]
    return [(list(positions), len(links)) for _, positions, links in spans_of(batch)]


def test_readers_share_a_batch_with_the_end_of_their_prefix() -> None:
    prompts = [[1, 2, 3, 4, 5, request] for request in range(2)]
    planner = make_planner(prompts, [2, 2], 100, max_batch_tokens=3)
    result = replay(planner, prompts, page_size=16, max_batch_tokens=3)
    assert contexts_in_step(result, 0) == [([0, 1, 2], 1)]
    assert contexts_in_step(result, 1) == [([3, 4], 1), ([5], 2)]
    assert contexts_in_step(result, 2) == [([6], 2), ([5], 2)]  # a decode first, then a prefill


def test_decodes_come_first_and_prefill_has_the_rest_of_the_budget() -> None:
    prompts = [[request] * 3 for request in range(4)]
    planner = make_planner(prompts, [20] * 4, 100, max_batch_tokens=4)
    result = replay(planner, prompts, page_size=16, max_batch_tokens=4)
    widths = [(batch.num_decode_tokens, batch.num_prefill_tokens) for batch in result.batches]
    assert widths[:7] == [(0, 4), (1, 3), (2, 2), (3, 1), (3, 1), (3, 1), (4, 0)]


def test_segments_chain_to_any_depth() -> None:
    prompts = [[1, 1], [1, 2, 1], [1, 2, 3, 1], [1, 2, 3, 4, 1], [1, 2, 3, 4, 2]]
    planner = make_planner(prompts, [3] * 5, 100, page_size=1)
    result = replay(planner, prompts, page_size=1)
    assert max(len(links) for batch in result.batches for _, _, links in spans_of(batch)) == 5
    assert planner.stats["computed_prompt_tokens"] == 4 + 5


def test_order_is_decode_heavy_first_and_depth_first() -> None:
    prompts = [[1, 1, 1, 1, 1, 0], [2, 2, 0], [1, 1, 1, 1, 1, 9], [3], [2, 2, 9]]
    expected = np.array([4, 8, 4, 1, 1], np.int32)
    planner = make_planner(prompts, [9] * 5, 100, expected_output_tokens=expected)
    # group of 1s: 8 / 7, group of 2s: 9 / 4, loner: 1 / 1
    assert planner.order.tolist() == [1, 4, 0, 2, 3]


def test_admission_waits_for_expected_growth_only() -> None:
    """12 pages of 1 token; each request: 2 prompt tokens, 9 more at its longest."""
    prompts = [[request, request] for request in range(4)]

    def running_after_start(expected: int) -> int:
        planner = make_planner(
            prompts, [10] * 4, 12, page_size=1, expected_output_tokens=np.full(4, expected, np.int32)
        )
        planner.next_batch()
        return planner.stats["running"]

    assert running_after_start(10) == 1  # 11 pages each
    assert running_after_start(4) == 2  # 5 pages each
    assert running_after_start(1) == 4  # 2 pages each; 11 + nothing pinned still fits


def test_a_pool_that_holds_all_at_their_longest_makes_nobody_wait() -> None:
    prompts = [[request, *range(request % 7)] for request in range(30)]
    max_output = [1 + 13 * request % 40 for request in range(30)]
    num_pages = sum(pages_for(len(p) + m - 1, 4) for p, m in zip(prompts, max_output, strict=True))
    planner = make_planner(prompts, max_output, num_pages, levels=0, page_size=4)
    planner.next_batch()
    assert planner.stats["running"] == 30
    planner = make_planner(prompts, max_output, num_pages - 1, levels=0, page_size=4, order="arrival")
    planner.next_batch()
    assert planner.stats["running"] == 30  # the forecast sees that they do not all end together


def test_a_cap_on_running_requests_is_kept() -> None:
    prompts = [[request, 1, 2] for request in range(9)]
    planner = make_planner(prompts, [4] * 9, 100, max_running_requests=2)
    result = replay(planner, prompts, page_size=16)
    assert max(len(batch.logit_rows) for batch in result.batches) == 2


@pytest.mark.parametrize(
    ("order", "expected"), [("decode_first", [1, 3, 2, 0]), ("arrival", [0, 1, 3, 2]), ("blend", [1, 3, 0, 2])]
)
def test_order_is_a_choice_and_always_depth_first(order: str, expected: list[int]) -> None:
    prompts = [[5, 5, 5, 5, 5, 5], [1, 2, 3], [7, 7], [1, 2, 4]]  # to decode: 1 of 6; group 9 + 9 of 4; 2 of 2
    planner = make_planner(prompts, [1, 9, 2, 9], 100, order=order)
    assert planner.order.tolist() == expected


def run_without_known_lengths(is_finished: Callable[[int, int], bool]) -> tuple[list[int], int]:
    """Requests in each step, and preemptions, of a job that knows only a bound of 60 tokens: 61 pages of 200 each."""
    prompts = [[request, request] for request in range(300)]
    planner = make_planner(prompts, [60] * 300, 200, page_size=1)
    result = replay(planner, prompts, page_size=1, is_finished=is_finished, audit=False)
    return [len(batch.logit_rows) for batch in result.batches], planner.stats["preemptions"]


def test_output_lengths_are_learned() -> None:
    widths, _ = run_without_known_lengths(lambda request, num_output_tokens: num_output_tokens == 6)
    assert max(widths[:5]) == 3
    assert max(widths) > 15


def test_outputs_that_run_to_their_bound_teach_nothing() -> None:
    widths, preemptions = run_without_known_lengths(never)
    assert widths[0] == 3
    assert max(widths) <= 200 // 30  # a staggered start holds half as much a request, at best
    assert preemptions == 0


def test_the_same_job_gives_the_same_plan() -> None:
    def plan() -> list[list[int]]:
        prompts, max_output = random_job(random.Random(3))
        planner = make_planner(prompts, max_output, 20, page_size=2, max_batch_tokens=4)
        result = replay(planner, prompts, page_size=2)
        return [[*batch.token_ids.tolist(), *batch.slots.tolist()] for batch in result.batches]

    assert plan() == plan()


def test_a_request_that_fits_only_without_its_chain_runs_alone() -> None:
    # Chain and own part round up to 2 + 2 pages of 4; 9 + 3 tokens in one piece fit 3.
    prompts = [[1, 1, 1, 1, 1, 2, 3, 4, 5], [1, 1, 1, 1, 1, 9]]
    planner = make_planner(prompts, [4, 1], 3, page_size=4)
    assert planner.refused == []
    replay(planner, prompts, page_size=4)
    assert [planner.num_cached_tokens(request) for request in range(2)] == [0, 0]
    assert planner.stats["peak_pages"] <= 3


def test_a_request_that_can_never_fit_is_refused_with_the_numbers() -> None:
    prompts = [[1] * 30, [1] * 4]
    planner = make_planner(prompts, [4, 4], 8, page_size=4)
    message = "request 0 needs 9 KV pages of 4 tokens (prompt 30 + max_output_tokens 4), the pool has 8"
    assert planner.refused == [(0, message)]
    replay(planner, prompts, page_size=4)
    assert planner.output_tokens(0).tolist() == []
    assert planner.stats["num_requests"] == 2
    assert planner.stats["prompt_tokens"] == 4


def test_a_request_that_just_fits_is_not_refused() -> None:
    prompts = [[1] * 29]  # 29 + 4 - 1 = 32 = 8 * 4: the last token's K/V is never stored
    planner = make_planner(prompts, [4], 8, page_size=4)
    assert planner.refused == []
    replay(planner, prompts, page_size=4)
    assert planner.stats["peak_pages"] == 8


def test_an_empty_job_is_done() -> None:
    planner = make_planner([], [], 4)
    assert planner.next_batch() is None
    assert planner.next_batch() is None


def test_arrays_are_read_only_and_keep_the_batch_alive() -> None:
    planner = make_planner([[1, 2, 3]], [1], 4)
    batch = planner.next_batch()
    token_ids = batch.token_ids
    del batch, planner
    gc.collect()
    assert token_ids.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        token_ids[0] = 9


def test_the_planner_keeps_the_prompts_alive() -> None:
    planner = make_planner([[1, 2, 3] * 100_000], [1], 20_000, max_batch_tokens=300_000)
    gc.collect()
    assert planner.next_batch().token_ids.tolist() == [1, 2, 3] * 100_000


def test_str_names_what_a_batch_holds() -> None:
    planner = make_planner([[1, 2, 3]], [1], 4)
    assert str(planner.next_batch()) == "TokenBatch: 0 decode and 3 prefill tokens in 1 spans over 1 segments"


def test_next_batch_and_commit_alternate() -> None:
    planner = make_planner([[1, 2]], [3], 4)
    with pytest.raises(RuntimeError, match="commit: no batch is in flight"):
        planner.commit(np.zeros(0, np.int32))
    planner.next_batch()
    with pytest.raises(RuntimeError, match="next_batch: the previous batch has not been committed"):
        planner.next_batch()
    with pytest.raises(ValueError, match=r"sampled: expected 1 entries, .* got 2"):
        planner.commit(np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="finished: expected 1 entries, as sampled has, got 0"):
        planner.commit(np.zeros(1, np.int32), np.zeros(0, bool))
    with pytest.raises(TypeError, match="finished: expected bool, got int8"):
        planner.commit(np.zeros(1, np.int32), np.zeros(1, np.int8))
    with pytest.raises(TypeError, match="sampled: expected int32, got int64"):
        planner.commit(np.zeros(1, np.int64))
    assert planner.commit(np.array([5], np.int32)).tolist() == []  # a refused commit changed nothing
    planner.next_batch()
    assert planner.commit(np.array([6], np.int32), np.array([True])).tolist() == [0]
    assert planner.output_tokens(0).tolist() == [5, 6]
    assert planner.next_batch() is None


def test_output_tokens_of_no_request_is_an_index_error() -> None:
    planner = make_planner([[1, 2]], [3], 4)
    for request in (-1, 1):
        with pytest.raises(IndexError, match=f"request_id: expected 0 to 0, got {request}"):
            planner.output_tokens(request)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_pages": 0}, "num_pages: expected at least 1, got 0"),
        ({"page_size": 0}, "page_size: expected at least 1, got 0"),
        ({"max_batch_tokens": 0}, "max_batch_tokens: expected at least 1, got 0"),
        ({"max_output_tokens": [1]}, "max_output_tokens: expected one entry for each of the 2 prompts, got 1"),
        ({"max_output_tokens": [1, 0]}, r"max_output_tokens\[1\]: expected at least 1, got 0"),
        ({"max_output_tokens": [2**31 - 1, 1]}, r"max_output_tokens\[0\]: prompt and output together exceed"),
        ({"expected_output_tokens": [1]}, "expected_output_tokens: expected 2 entries, as max_output_tokens has"),
        ({"expected_output_tokens": [1, -4]}, r"expected_output_tokens\[1\]: expected at least 0, got -4"),
        ({"order": "lpm"}, 'order: expected "decode_first", "arrival" or "blend", got "lpm"'),
        ({"max_running_requests": 0}, "max_running_requests: expected at least 1, got 0"),
        ({"window_left": -2}, "window_left: expected at least -1, got -2"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    tokens, indptr = ragged([[1, 2], [1, 3]])
    arguments = {"max_output_tokens": [1, 1], "num_pages": 4, **options}
    for name in ("max_output_tokens", "expected_output_tokens"):
        if name in arguments:
            arguments[name] = np.array(arguments[name], np.int32)
    segments = ext.choose_segments(ext.PrefixTrie(tokens, indptr, drop_last=1))
    with pytest.raises(ValueError, match=message):
        ext.BatchPlanner(tokens, indptr, segments, **arguments)


def one_segment(token_end: int, owner: int, readers: list[int]) -> ext.Segments:
    arrays = {"parent": [-1], "token_begin": [0], "token_end": [token_end], "owner_request": [owner]}
    return ext.Segments(
        **{name: np.array(values, np.int32) for name, values in arrays.items()},
        request_segment=np.array(readers, np.int32),
    )


@pytest.mark.parametrize(
    ("prompts", "segments", "message"),
    [
        ([[1], [], [2]], one_segment(1, 0, [-1] * 3), "prompt 1 is empty"),
        ([[1, 2]], one_segment(1, 0, [-1, -1]), "segments: made for 2 requests, but there are 1 prompts"),
        ([[1, 2, 3], [1, 2]], one_segment(2, 0, [0, 0]), r"chain of request 1 covers 2 tokens .* drop_last=1"),
        (
            [[1, 2, 3], [1, 4, 3]],
            one_segment(2, 0, [0, 0]),
            r"request 1 reads segment 0 \(owner_request 0\), .* token 1",
        ),
        ([[1], [1, 4, 3]], one_segment(2, 0, [-1, 0]), "segment 0 .* ends at token 2, but its owner's prompt has 1"),
    ],
)
def test_segments_of_another_job_are_refused(prompts: list[list[int]], segments: ext.Segments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_planner(prompts, [1] * len(prompts), 4, segments=segments)


def test_nobody_writes_to_a_batch():
    batch = make_planner([[1, 2, 3]], [2], num_pages=4, page_size=2).next_batch()
    with pytest.raises(ValueError, match="read-only"):
        batch.slots[0] = 0


@pytest.mark.parametrize("window_left", [0, 1, 5, 12])
@pytest.mark.parametrize("page_size", [1, 4])
def test_a_request_of_any_length_fits_the_most_pages_of_a_segment_and_no_fewer(window_left: int, page_size: int):
    options = {"page_size": page_size, "max_batch_tokens": 5, "window_left": window_left}
    most = ext.BatchPlanner.most_segment_pages(**options)
    assert most is not None
    for num_pages in (most, most - 1):
        planner = make_planner([list(range(150))], [60], num_pages, **options)
        assert len(planner.refused) == (num_pages < most)
        while (batch := planner.next_batch()) is not None:
            planner.audit()
            planner.commit(np.zeros(len(batch.logit_rows), np.int32))
        assert planner.stats["peak_pages"] == (most if num_pages == most else 0)
    assert ext.BatchPlanner.most_segment_pages(page_size=page_size) is None
