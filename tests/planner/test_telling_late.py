"""Tokens told one batch late: what is planned before they are known, and what becomes of them."""

import random

import numpy as np
import pytest

from tests.planner.replay import make_planner, next_token

PROMPTS = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6], [7, 8]]


def tokens(*values):
    return np.array(values, np.int32)


def batch_arrays(batch):
    names = "positions slots logit_rows logit_request_ids span_indptr link_indptr link_segment segment_page_ids"
    return [getattr(batch, name).tolist() for name in names.split()]


@pytest.mark.parametrize("seed", range(20))
def test_where_lengths_are_known_late_tokens_change_no_batch(seed):
    """And each row whose token is missing says where it is."""
    generator = random.Random(seed)
    head = [generator.randrange(3) for _ in range(6)]
    prompts = [[*head[: generator.randint(1, 6)], generator.randrange(9)] for _ in range(12)]
    bounds = [generator.randint(1, 6) for _ in prompts]
    options = {"num_pages": 14, "page_size": 2, "max_batch_tokens": 8}
    at_once, late = (make_planner(prompts, bounds, **options) for _ in range(2))
    outputs: dict[int, list[int]] = {i: [] for i in range(len(prompts))}
    before = ended_before = None
    while (expected := at_once.next_batch()) is not None:
        batch = late.next_batch()
        late.audit()
        assert batch_arrays(batch) == batch_arrays(expected)
        known = batch.token_ids.copy()
        if before is not None:
            assert (known[batch.untold_rows] == -1).all()
            known[batch.untold_rows] = before[batch.untold_logits]
        assert known.tolist() == expected.token_ids.tolist()
        sampled = []
        for request in batch.logit_request_ids.tolist():
            outputs[request].append(next_token(request, [*prompts[request], *outputs[request]]))
            sampled.append(outputs[request][-1])
        ended_at_once = at_once.commit(tokens(*sampled))
        if before is not None:
            assert late.commit(before).tolist() == ended_before.tolist()
        late.advance()
        late.audit()
        before, ended_before = tokens(*sampled), ended_at_once
    assert late.next_batch() is None
    assert late.commit(before).tolist() == ended_before.tolist()
    late.audit()
    assert late.stats == at_once.stats
    assert all(late.output_tokens(i).tolist() == output for i, output in outputs.items())


def test_a_request_that_stops_has_one_more_row_whose_token_is_dropped():
    planner = make_planner([[5, 6], [7, 8]], [9, 2], num_pages=20)
    planner.next_batch()
    planner.advance()
    second = planner.next_batch()
    assert second.logit_request_ids.tolist() == [0, 1]
    assert second.untold_rows.tolist() == second.untold_logits.tolist() == [0, 1]
    with pytest.raises(ValueError, match="slots: expected num_rows of at least num_tokens = 2, got 1"):
        second.write_rows(slots=np.zeros(1, np.int64), token_ids=tokens(0), positions=tokens(0))
    assert planner.commit(tokens(10, 20), np.array([True, False])).tolist() == [0]
    planner.audit()
    planner.advance()
    assert planner.next_batch() is None, "the other one ended by its length"
    assert planner.output_tokens(1).tolist() == [20]
    assert planner.commit(tokens(11, 21)).tolist() == [1]
    assert [planner.output_tokens(i).tolist() for i in range(2)] == [[10], [20, 21]]
    assert planner.stats["output_tokens"] == 3
    assert planner.stats["used_pages"] == 0
    planner.audit()


def test_who_is_aborted_or_forgotten_is_not_told():
    planner = make_planner([[5, 6], [7, 8], [9]], [9, 1, 9], num_pages=20)
    first = planner.next_batch().logit_request_ids
    planner.advance()
    planner.abort(tokens(0, 1))  # 1 has ended, and stays as it is
    planner.forget(tokens(0, 1))
    planner.audit()
    assert planner.next_batch().logit_request_ids.tolist() == [2]
    assert planner.commit(10 * first + 10, first < 2).tolist() == []
    assert planner.commit(tokens(31), np.array([True])).tolist() == [2]
    assert planner.output_tokens(2).tolist() == [30, 31]
    planner.audit()


def test_calls_out_of_turn_are_refused():
    planner = make_planner(PROMPTS, [5] * 4, num_pages=20)
    with pytest.raises(RuntimeError, match="advance: no batch is in flight; call next_batch first"):
        planner.advance()
    num_logits = len(planner.next_batch().logit_rows)
    planner.advance()
    with pytest.raises(RuntimeError, match="advance: no batch is in flight"):
        planner.advance()
    planner.next_batch()
    with pytest.raises(RuntimeError, match="advance: the tokens of the batch before have not been committed"):
        planner.advance()
    with pytest.raises(ValueError, match=f"sampled: expected {num_logits} entries"):
        planner.commit(tokens(1))
    planner.commit(np.zeros(num_logits, np.int32))
    planner.advance()
    planner.audit()
