"""One BatchPlanner used by several Python threads, which take turns; other objects do not change."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

import batchllm_ext as ext
from tests.planner.replay import ragged


def together(*tasks: Callable[[], None]) -> None:
    """Runs each in a thread of its own; an exception of any of them is the test's."""
    errors: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def large_job(num_prompts: int = 3000, length: int = 20) -> tuple[np.ndarray, np.ndarray, ext.Segments, np.ndarray]:
    tokens = np.random.default_rng(0).integers(0, 3, num_prompts * length, np.int32)
    indptr = np.arange(0, num_prompts * length + 1, length)
    segments = ext.choose_segments(ext.PrefixTrie(tokens, indptr, drop_last=1))
    return tokens, indptr, segments, np.full(num_prompts, 4, np.int32)


def test_requests_may_be_added_by_other_threads_while_one_runs_the_steps() -> None:
    tokens, indptr, segments, max_output = large_job()
    planner = ext.BatchPlanner(
        tokens, indptr, segments, max_output_tokens=max_output, num_pages=200_000, max_batch_tokens=512
    )
    first_ids: list[int] = []

    def add() -> None:
        for _ in range(5):
            first_ids.append(planner.add_requests(tokens, indptr, segments, max_output_tokens=max_output))

    def run() -> None:
        while planner.stats["finished"] < 16 * len(max_output):
            batch = planner.next_batch()
            if batch is not None:
                planner.commit(np.full(len(batch.logit_rows), 7, np.int32))

    together(run, add, add, add)
    assert sorted(first_ids) == [len(max_output) * wave for wave in range(1, 16)]
    planner.audit()
    assert all(planner.output_tokens(request).tolist() == [7] * 4 for request in range(0, 16 * len(max_output), 97))


def test_whatever_is_read_beside_the_steps_is_whole() -> None:
    tokens, indptr, segments, max_output = large_job()
    planner = ext.BatchPlanner(
        tokens, indptr, segments, max_output_tokens=max_output, num_pages=20_000, max_batch_tokens=512
    )
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            planner.audit()
            stats = planner.stats
            assert stats["running"] + stats["waiting"] + stats["finished"] == len(planner.order) == len(max_output)
            assert set(planner.output_tokens(17).tolist()) <= {7}
            assert planner.num_cached_tokens(17) < 20
            assert planner.refused == []

    def run() -> None:
        try:
            while (batch := planner.next_batch()) is not None:
                planner.commit(np.full(len(batch.logit_rows), 7, np.int32))
        finally:
            done.set()

    together(run, read, read)


def test_two_loops_over_one_planner_are_told_and_break_nothing() -> None:
    tokens, indptr, segments, max_output = large_job(200)
    planner = ext.BatchPlanner(tokens, indptr, segments, max_output_tokens=max_output, num_pages=20_000)
    refusals: list[str] = []

    def run() -> None:
        while planner.stats["finished"] < len(max_output):
            try:
                batch = planner.next_batch()
                if batch is not None:
                    planner.commit(np.zeros(len(batch.logit_rows), np.int32))
            except RuntimeError as error:
                refusals.append(str(error))

    together(run, run)
    planner.audit()
    assert set(refusals) <= {
        "next_batch: the previous batch has not been committed",
        "commit: no batch is in flight; call next_batch first",
    }


def test_a_trie_and_its_segments_serve_many_threads() -> None:
    tokens, indptr, segments, _ = large_job()
    trie = ext.PrefixTrie(tokens, indptr, drop_last=1)

    def read() -> None:
        for _ in range(5):
            trie.audit()
            assert ext.choose_segments(trie).saved_tokens == segments.saved_tokens

    together(read, read, read)


def test_what_was_checked_of_a_trie_cannot_be_changed() -> None:
    tokens, indptr = ragged([[1, 2, 3], [1, 2, 4]])
    for index_type in (np.int32, np.int64):
        offsets = indptr.astype(index_type)
        trie = ext.PrefixTrie(tokens, offsets)
        offsets[:] = 1 << 30
        trie.audit()
        assert "(2 readers)" in str(trie)
