"""FCFS over an LRU cache of hashed blocks."""

import pytest

from batchllm.estimate.simulate import Policy, simulate
from tests.simulate.jobs import random_job
from tests.simulate.reference_lru import LruReference


@pytest.mark.parametrize("policy", [Policy.LRU, Policy.LRU_SORTED])
def test_lru_does_what_its_rules_say(policy):
    num_evicted = num_preempted = num_dropping = 0
    for seed in range(600):
        case = random_job(seed, drops=True)
        cap = 1 + seed % 4 if seed % 3 else 256
        reference = LruReference(
            case.prompts,
            case.output_tokens,
            **case.pool,
            max_num_seqs=cap,
            is_sorted=policy is Policy.LRU_SORTED,
        )
        simulation = simulate(case.job, policy, **case.pool, max_num_seqs=cap)
        reference.run().check(simulation)
        num_evicted += simulation.evicted_tokens > 0
        num_preempted += simulation.preempted_tokens > 0
        whole = max(len(prompt) + output for prompt, output in zip(case.prompts, case.output_tokens, strict=True))
        num_dropping += whole - 1 > case.pool["kv_tokens"]
    assert num_evicted > (1 if policy is Policy.LRU_SORTED else 20)
    assert num_preempted > 20
    assert num_dropping > 20
