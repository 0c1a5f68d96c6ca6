"""The simulation of our own planner, against the planner driven from Python."""

import numpy as np
import pytest

import batchllm_ext as ext
from batchllm.estimate.simulate import Policy, simulate
from tests.planner.replay import make_planner, spans_of
from tests.simulate.jobs import random_job
from tests.simulate.ledger import visible


def keys_read(batch, window_left):
    """(segment, position): the keys that some row of the batch sees, and those up to the end of the segment."""
    keys = set()
    for _, positions, links in spans_of(batch):
        for link in links:
            begin = batch.segment_begin[link]
            stored = range(begin, begin + batch.segment_num_tokens[link])
            keys.update((link, key) for key in stored if key >= visible(positions[0], window_left)[0])
    return keys


@pytest.mark.parametrize(("policy", "levels"), [(Policy.NONE, 0), (Policy.BATCHLLM_SINGLE, 1), (Policy.BATCHLLM, None)])
def test_each_step_is_the_planners(policy, levels):
    for seed in range(120):
        case = random_job(seed, drops=True)
        simulation = simulate(case.job, policy, **case.pool, reader_cost=0.0)
        planner = make_planner(
            case.prompts,
            case.max_output_tokens,
            case.pool["kv_tokens"] // case.pool["page_size"],
            levels=levels,
            page_size=case.pool["page_size"],
            max_batch_tokens=case.pool["max_batch_tokens"],
            window_left=case.window_left,
            expected_output_tokens=np.array(case.output_tokens, np.int32),
        )
        left = list(case.output_tokens)
        for step in range(simulation.num_steps):
            batch = planner.next_batch()
            assert simulation.num_decode_tokens[step] == batch.num_decode_tokens
            assert simulation.num_prefill_tokens[step] == batch.num_prefill_tokens
            assert simulation.num_sampled[step] == len(batch.logit_rows)
            for pairs, read, window in zip(
                simulation.attention_pairs[step], simulation.kv_tokens_read[step], simulation.windows, strict=True
            ):
                assert pairs == sum(len(visible(position, window)) for position in batch.positions)
                assert read == len(keys_read(batch, window))
            assert simulation.used_kv_tokens[step] == planner.stats["used_pages"] * case.pool["page_size"]
            assert simulation.num_running[step] == planner.stats["running"]
            for request in batch.logit_request_ids:
                left[request] -= 1
            finished = np.array([left[request] == 0 for request in batch.logit_request_ids], bool)
            planner.commit(np.zeros(len(finished), np.int32), finished)
        assert planner.next_batch() is None
        assert simulation.preemptions == planner.stats["preemptions"]
        assert simulation.preempted_tokens == planner.stats["recomputed_prompt_tokens"]


def test_a_shared_segment_is_computed_once_whatever_the_pool():
    num_preempted = 0
    for seed in range(300):
        case = random_job(seed)
        pool = {**case.pool, "page_size": 1}  # rounding to pages may detach a request from its segments
        for policy, levels in ((Policy.NONE, 0), (Policy.BATCHLLM_SINGLE, 1), (Policy.BATCHLLM, None)):
            trie = ext.PrefixTrie(case.job.tokens, case.job.indptr, drop_last=1)
            saved = ext.choose_segments(trie, levels, reader_cost=2.0).saved_tokens
            simulation = simulate(case.job, policy, **pool)
            computed_once = simulation.computed_prompt_tokens - simulation.preempted_tokens
            assert computed_once == simulation.prompt_tokens - saved
            assert simulation.evicted_tokens == 0
            num_preempted += simulation.preemptions
    assert num_preempted > 0


def test_lengths_order_and_cap_reach_the_planner():
    case = random_job(1, min_prompts=30, max_prompts=30)
    outputs = np.array([1 + request % 7 for request in range(30)], np.int32)
    job = type(case.job)(case.job.tokens, case.job.indptr, outputs, outputs + 60)
    pool = {"kv_tokens": 160, "page_size": 1, "max_batch_tokens": 32}
    known = simulate(job, Policy.BATCHLLM, **pool)
    assert known.num_steps < simulate(job, Policy.BATCHLLM, **pool, lengths="bound").num_steps
    assert known.num_running.max() > simulate(job, Policy.BATCHLLM, **pool, max_num_seqs=3).num_running.max() == 3
    by_arrival = simulate(job, Policy.BATCHLLM, **pool, order="arrival")
    assert by_arrival.num_prefill_tokens.tolist() != known.num_prefill_tokens.tolist()
    blend = simulate(job, Policy.BATCHLLM_BLEND, **pool)
    assert blend.num_prefill_tokens.tolist() != known.num_prefill_tokens.tolist()
    assert blend.num_prefill_tokens.tolist() == (
        simulate(job, Policy.BATCHLLM, **pool, order="blend").num_prefill_tokens.tolist()
    )
    learned = simulate(job, Policy.BATCHLLM, **pool, lengths="learned")
    assert learned.num_running.tolist() != known.num_running.tolist()
