"""Requests that are aborted and forgotten, prompts with several requests, prompt tokens that are scored."""

import gc
import weakref

import numpy as np
import pytest

import batchllm_ext as ext


def ragged(prompts):
    tokens = np.array([token for prompt in prompts for token in prompt], np.int32)
    return tokens, np.cumsum([0, *map(len, prompts)])


def add(planner, prompts, outputs=4, prompt_of_request=None, **options):
    tokens, indptr = ragged(prompts)
    rows = None if prompt_of_request is None else np.array(prompt_of_request, np.int32)
    num_requests = len(prompts) if rows is None else len(rows)
    trie = ext.PrefixTrie(tokens, indptr, drop_last=1, prompt_of_request=rows)
    bounds = np.full(num_requests, outputs, np.int32)
    segments = ext.choose_segments(trie)
    return planner.add_requests(tokens, indptr, segments, max_output_tokens=bounds, prompt_of_request=rows, **options)


def step(planner):
    batch = planner.next_batch()
    planner.audit()
    if batch is not None:
        planner.commit(np.zeros(len(batch.logit_rows), np.int32))
        planner.audit()
    return batch


def run(planner):
    while step(planner) is not None:
        pass


def ids(*values):
    return np.array(values, np.int32)


PROMPTS = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6], [7, 8]]


def test_an_aborted_request_ends_where_it_stands_and_the_others_go_on():
    planner = ext.BatchPlanner(num_pages=16, page_size=2, max_batch_tokens=3)
    add(planner, PROMPTS)
    step(planner)
    planner.abort(ids(0, 3))
    planner.audit()
    run(planner)
    assert [len(planner.output_tokens(i)) for i in range(4)] == [0, 4, 4, 0]
    assert planner.stats["aborted"] == 2
    assert planner.stats["finished"] == 2
    assert planner.stats["used_pages"] == 0


def test_aborting_all_frees_every_page_at_once():
    planner = ext.BatchPlanner(num_pages=16, page_size=2, max_batch_tokens=64)
    add(planner, PROMPTS)
    step(planner)
    assert planner.stats["used_pages"] > 0
    planner.abort(ids(0, 1, 2, 3))
    planner.audit()
    assert planner.stats["used_pages"] == 0
    assert planner.next_batch() is None


def test_nothing_is_aborted_while_a_batch_is_in_flight():
    planner = ext.BatchPlanner(num_pages=16, page_size=2)
    add(planner, PROMPTS)
    planner.next_batch()
    with pytest.raises(RuntimeError, match="abort: a batch is in flight"):
        planner.abort(ids(0))


def test_what_is_forgotten_is_unknown_and_ids_go_on():
    planner = ext.BatchPlanner(num_pages=16, page_size=2)
    add(planner, PROMPTS)
    with pytest.raises(ValueError, match="forget: request 2 has not finished"):
        planner.forget(ids(2))
    run(planner)
    planner.forget(ids(0, 1, 2))
    planner.audit()
    with pytest.raises(IndexError, match="request 1 is forgotten"):
        planner.output_tokens(1)
    with pytest.raises(IndexError, match="request 0 is forgotten"):
        planner.abort(ids(3, 0))
    assert len(planner.output_tokens(3)) == 4
    assert add(planner, PROMPTS) == 4
    planner.audit()
    run(planner)
    assert len(planner.output_tokens(7)) == 4


def test_a_wave_gives_its_tokens_back_when_its_last_request_ends():
    planner = ext.BatchPlanner(num_pages=64, page_size=2)
    tokens, indptr = ragged(PROMPTS)
    kept = weakref.ref(tokens)
    segments = ext.choose_segments(ext.PrefixTrie(tokens, indptr, drop_last=1))
    planner.add_requests(tokens, indptr, segments, max_output_tokens=np.full(4, 3, np.int32))
    del tokens
    gc.collect()
    assert kept() is not None
    add(planner, [[1, 2, 3, 9]], outputs=9)  # borrows what the first wave holds
    run(planner)
    gc.collect()
    assert kept() is None


def test_waves_without_end_keep_nothing():
    planner = ext.BatchPlanner(num_pages=64, page_size=2)
    sizes = []
    for wave in range(200):
        first = add(planner, PROMPTS)
        run(planner)
        planner.forget(np.arange(first, first + 4, dtype=np.int32))
        sizes.append(len(planner.order))
        assert first == 4 * wave
    assert max(sizes) == 0
    planner.audit()


def test_samples_of_a_prompt_share_its_tokens_and_all_but_the_last_are_computed_once():
    planner = ext.BatchPlanner(num_pages=64, page_size=2)
    add(planner, [[1, 2, 3, 4, 5], [9, 8]], prompt_of_request=[0, 0, 0, 1])
    run(planner)
    stats = planner.stats
    assert (stats["num_requests"], stats["prompt_tokens"], stats["computed_prompt_tokens"]) == (4, 17, 4 + 3 + 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [([0, 2], r"prompt_of_request\[1\]: expected 0 to 1, got 2"), ([-1], r"prompt_of_request\[0\]: .* got -1")],
)
def test_prompts_that_are_not_there_are_refused(rows, message):
    tokens, indptr = ragged([[1, 2], [3, 4]])
    with pytest.raises(ValueError, match=message):
        ext.PrefixTrie(tokens, indptr, prompt_of_request=np.array(rows, np.int32))


def scores_of(planner):
    """{(request, position): token} of all steps to the end."""
    found = {}
    while (batch := planner.next_batch()) is not None:
        for i, row in enumerate(batch.scored_rows):
            for j in range(batch.scores_indptr[i], batch.scores_indptr[i + 1]):
                key = (int(batch.score_request_ids[j]), int(batch.positions[row]) + 1)
                assert key not in found
                found[key] = int(batch.score_token_ids[j])
        outputs = batch.logit_batch()
        assert list(outputs.positions) == list(batch.positions[batch.output_rows])
        assert set(batch.output_rows) == {*batch.logit_rows, *batch.scored_rows}
        assert list(outputs.positions[outputs.scored_rows]) == list(batch.positions[batch.scored_rows])
        planner.commit(np.zeros(len(batch.logit_rows), np.int32))
    return found


@pytest.mark.parametrize("max_batch_tokens", [1, 3, 64])
def test_every_reader_of_a_shared_row_is_given_its_own_next_token(max_batch_tokens):
    planner = ext.BatchPlanner(num_pages=64, page_size=2, max_batch_tokens=max_batch_tokens)
    add(planner, PROMPTS, score_begin=ids(1, 2, 1, 2))
    expected = {
        (request, position): PROMPTS[request][position]
        for request, begin in enumerate([1, 2, 1, 2])
        for position in range(begin, len(PROMPTS[request]))
    }
    assert scores_of(planner) == expected


def test_a_score_before_the_second_token_is_refused():
    planner = ext.BatchPlanner(num_pages=64)
    with pytest.raises(ValueError, match=r"score_begin\[1\]: expected at least 1, got 0"):
        add(planner, PROMPTS, score_begin=ids(1, 0, 1, 1))


def test_attention_is_planned_for_a_batch_as_for_its_arrays():
    planner = ext.BatchPlanner(num_pages=64, page_size=2)
    add(planner, PROMPTS)
    batch = planner.next_batch()
    names = (
        "span_indptr span_begin link_indptr link_segment segment_page_indptr segment_page_ids segment_begin "
        "segment_num_tokens"
    )
    shape = {"num_qo_heads": 4, "num_kv_heads": 2, "head_dim": 32, "page_size": 2}
    plan = ext.plan_attention(batch, **shape)
    assert str(plan) == str(ext.plan_attention(*(getattr(batch, name) for name in names.split()), **shape))
