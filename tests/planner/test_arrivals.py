"""BatchPlanner.add_requests: a job grows while it runs; what is in the pool is borrowed, never split or renumbered."""

from __future__ import annotations

import gc
import random

import numpy as np
import pytest

from tests.planner.replay import Replay, add_requests, make_planner, replay, spans_of

DOCUMENT = list(range(100, 120))


def run_with_arrivals(
    first: list[list[int]],
    added: list[list[int]],
    *,
    at_step: int = 1,
    num_pages: int = 200,
    max_output: int = 12,
    max_batch_tokens: int = 1024,
    **add_options: object,
) -> tuple[Replay, dict[str, int]]:
    prompts = [*first]
    planner = make_planner(first, [max_output] * len(first), num_pages, page_size=4, max_batch_tokens=max_batch_tokens)

    def arrive(step: int) -> None:
        if step == at_step:
            assert add_requests(planner, added, [max_output] * len(added), **add_options) == len(first)
            prompts.extend(added)

    result = replay(planner, prompts, page_size=4, in_flight=arrive, max_batch_tokens=max_batch_tokens)
    assert sorted(result.finish_order) == list(range(len(prompts)))
    return result, planner.stats


def test_added_requests_borrow_a_prefix_that_is_in_the_pool() -> None:
    first = [[*DOCUMENT, 1, request] for request in range(2)]
    added = [[*DOCUMENT, 2, request] for request in range(3)]
    result, stats = run_with_arrivals(first, added)
    assert stats["borrowed_prompt_tokens"] == 20
    assert all(result.num_computed[tuple(DOCUMENT[:end])] == 1 for end in range(1, 21))


@pytest.mark.parametrize("length", [1, 3, 4, 7, 19])
def test_a_link_may_stop_inside_a_segment(length: int) -> None:
    first = [[*DOCUMENT, request] for request in range(2)]
    added = [[*DOCUMENT[:length], 7, request] for request in range(2)]
    result, stats = run_with_arrivals(first, added)
    assert stats["borrowed_prompt_tokens"] == length
    assert all(result.num_computed[tuple(DOCUMENT[:end])] == 1 for end in range(1, 21))


def test_a_loner_borrows_too_and_chains_are_followed_to_any_depth() -> None:
    first = [[*DOCUMENT, *tail, request] for tail in ([1, 2, 3], [1, 2, 9], [5, 6]) for request in range(2)]
    result, stats = run_with_arrivals(first, [[*DOCUMENT, 1, 2, 3, 77]])
    assert stats["borrowed_prompt_tokens"] == 23
    assert result.num_computed[(*DOCUMENT, 1, 2, 3)] == 1


def test_requests_that_leave_one_source_at_different_tokens() -> None:
    first = [[*DOCUMENT, request] for request in range(2)]
    added = [[*DOCUMENT[:8], 1, 1], [*DOCUMENT[:8], 1, 2], [*DOCUMENT[:13], 3], [*DOCUMENT, 55]]
    result, stats = run_with_arrivals(first, added)
    assert stats["borrowed_prompt_tokens"] >= 8 + 13 + 20
    assert all(result.num_computed[tuple(DOCUMENT[:end])] == 1 for end in range(1, 21))


def test_a_prefix_that_is_still_being_computed_is_borrowed() -> None:
    first = [[*DOCUMENT, request] for request in range(2)]
    result, stats = run_with_arrivals(first, [[*DOCUMENT, 5, 5]], at_step=0, max_batch_tokens=3)
    assert stats["borrowed_prompt_tokens"] == 20
    assert result.num_computed[tuple(DOCUMENT)] == 1


def test_a_source_that_is_gone_is_computed_again() -> None:
    first = [[*DOCUMENT, request] for request in range(2)]
    prompts = [*first]
    planner = make_planner(first, [2, 2], 200, page_size=4)
    replay(planner, prompts, page_size=4)
    add_requests(planner, [[*DOCUMENT, 9]], [2])
    prompts.append([*DOCUMENT, 9])
    assert planner.next_batch().num_tokens == 21
    assert planner.stats["borrowed_prompt_tokens"] == 0


def test_a_borrowed_prefix_stays_until_its_last_reader() -> None:
    # The borrower runs long after the readers of its source have finished.
    first = [[*DOCUMENT, request] for request in range(2)]
    prompts = [*first, [*DOCUMENT, 9]]
    planner = make_planner(first, [2, 2], 200, page_size=4)
    result = replay(
        planner,
        prompts,
        page_size=4,
        in_flight=lambda step: step == 0 and add_requests(planner, prompts[2:], [30]),
    )
    assert result.finish_order == [0, 1, 2]
    assert planner.stats["borrowed_prompt_tokens"] == 20


def test_reader_cost_keeps_small_matches_apart() -> None:
    first = [[*DOCUMENT, request] for request in range(2)]
    added = [[100, 101, 7, request] for request in range(3)]
    _, stats = run_with_arrivals(first, added, reader_cost=2.0)
    assert stats["borrowed_prompt_tokens"] == 0
    _, stats = run_with_arrivals(first, [[*DOCUMENT[:3], 7]], reader_cost=2.0)
    assert stats["borrowed_prompt_tokens"] == 3


@pytest.mark.parametrize(("max_output", "borrowed"), [(8, 8), (30, 0)])
def test_a_chain_that_would_not_fit_beside_its_source_does_not_borrow(max_output: int, borrowed: int) -> None:
    # 12 pages; the source holds 5. The added request shares 2 of them and has 2 or 8 of its own: 5 + 8 do not fit.
    prompts = [*([*DOCUMENT, request] for request in range(2)), [*DOCUMENT[:8], 7]]
    planner = make_planner(prompts[:2], [8, 8], 12, page_size=4)
    add_requests(planner, prompts[2:], [max_output])
    replay(planner, prompts, page_size=4)
    assert planner.refused == []
    assert planner.stats["borrowed_prompt_tokens"] == borrowed


def test_added_requests_start_after_those_that_were_there() -> None:
    planner = make_planner([[1, 2], [3, 4]], [1, 9], 100)
    assert add_requests(planner, [[5, 6], [7, 8]], [50, 60]) == 2
    assert planner.order.tolist() == [1, 0, 3, 2]
    assert planner.stats["num_requests"] == 4
    assert planner.stats["prompt_tokens"] == 8


def test_a_job_that_was_done_goes_on() -> None:
    planner = make_planner([[1, 2]], [3], 100)
    replay(planner, [[1, 2]], page_size=16)
    add_requests(planner, [[1, 2, 3]], [2])
    gc.collect()  # the planner keeps the added prompts alive
    assert planner.next_batch().token_ids.tolist() == [1, 2, 3]
    planner.commit(np.array([8], np.int32), np.array([True]))
    assert planner.output_tokens(1).tolist() == [8]
    assert planner.next_batch() is None


def test_a_refused_addition_names_its_id_and_a_wrong_one_adds_nothing() -> None:
    planner = make_planner([[1, 2]], [3], 4, page_size=4)
    assert add_requests(planner, [[1] * 30], [4]) == 1
    assert planner.refused == [
        (1, "request 1 needs 9 KV pages of 4 tokens (prompt 30 + max_output_tokens 4), the pool has 4")
    ]
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        add_requests(planner, [[1], []], [1, 1])
    with pytest.raises(ValueError, match=r"max_output_tokens\[0\]: expected at least 1, got 0"):
        add_requests(planner, [[1]], [0])
    assert planner.stats["num_requests"] == 2
    planner.audit()
    replay(planner, [[1, 2], [1] * 30], page_size=4)


def test_arrivals_at_any_time_keep_every_promise() -> None:
    borrowed = preemptions = 0
    for seed in range(150):
        rng = random.Random(seed)
        base = [rng.randint(0, 2) for _ in range(24)]

        def wave(rng: random.Random = rng, base: list[int] = base) -> list[list[int]]:
            return [
                [*base[: rng.randint(0, 24)], *(rng.randint(0, 2) for _ in range(rng.randint(1, 5)))]
                for _ in range(rng.randint(1, 8))
            ]

        prompts = wave()
        expected = np.ones(len(prompts), np.int32)  # far too few: all that fit are admitted, and preempted later
        planner = make_planner(
            prompts,
            [rng.randint(1, 9) for _ in prompts],
            rng.randint(18, 60),
            page_size=2,
            expected_output_tokens=expected,
        )

        def arrive(step: int, rng: random.Random = rng, prompts: list[list[int]] = prompts, planner=planner) -> None:
            if step < 20 and rng.random() < 0.2:
                added = wave()
                add_requests(planner, added, [rng.randint(1, 9) for _ in added], reader_cost=rng.choice([0, 2]))
                prompts.extend(added)

        replay(planner, prompts, page_size=2, in_flight=arrive)
        borrowed += planner.stats["borrowed_prompt_tokens"]
        preemptions += planner.stats["preemptions"]
    assert borrowed > 500
    assert preemptions > 20


def test_a_borrowed_segment_is_a_segment_of_the_batch() -> None:
    first = [[*DOCUMENT, request] for request in range(2)]
    result, _ = run_with_arrivals(first, [[*DOCUMENT[:8], 7, 7]])
    batch = next(batch for batch in result.batches if 2 in batch.logit_request_ids)
    _, positions, links = spans_of(batch)[-1]
    assert list(positions) == [8, 9]
    assert batch.segment_num_tokens[links].tolist() == [8, 2]
