"""A radix cache with a queue ordered by what is cached."""

import numpy as np
import pytest

from batchllm.estimate.simulate import Policy, SimulatedJob, simulate
from tests.planner.replay import ragged
from tests.simulate.jobs import random_job
from tests.simulate.reference_radix import RadixReference

SMALL, CROWDED, LONG_HEADS = {}, {"min_prompts": 20, "max_prompts": 40}, {"run": 8}
LONG_QUEUE = {"min_prompts": 130, "max_prompts": 150}  # longer than what SGLang sorts by longest prefix


@pytest.mark.parametrize(
    ("policy", "kind", "num_seeds", "num_replayed"),
    [
        (Policy.RADIX_LPM, SMALL, 600, 50),
        (Policy.RADIX_LPM, CROWDED, 300, 20),
        (Policy.RADIX_LPM, LONG_HEADS, 300, 20),
        (Policy.RADIX_LPM, LONG_QUEUE, 20, 4),
        (Policy.RADIX_DFS, SMALL, 600, 50),
        (Policy.RADIX_DFS, CROWDED, 300, 20),
        (Policy.RADIX_DFS, LONG_HEADS, 300, 20),
    ],
)
def test_radix_does_what_its_rules_say(policy, kind, num_seeds, num_replayed):
    """Replayed are those jobs first in which something is evicted or a request retracted."""
    cases = []
    for seed in range(num_seeds):
        case = random_job(seed, **kind)
        cap = 1 + seed % 4 if seed % 2 else 2048
        simulation = simulate(case.job, policy, **case.pool, max_num_seqs=cap)
        cases.append((simulation.evicted_tokens + simulation.preemptions == 0, seed, case, cap, simulation))
    cases = sorted(cases, key=lambda entry: entry[:2])[:num_replayed]
    assert not cases[2][0]
    for _, _, case, cap, simulation in cases:
        reference = RadixReference(
            case.prompts,
            case.output_tokens,
            case.max_output_tokens,
            **case.pool,
            max_running_requests=cap,
            is_dfs=policy is Policy.RADIX_DFS,
        )
        reference.run().check(simulation)


@pytest.mark.parametrize(("kv_tokens", "num_running"), [(10_000, 2), (8_000, 1)])
def test_at_most_4096_output_tokens_are_reserved_for_a_request(kv_tokens, num_running):
    tokens, indptr = ragged([[1], [2]])
    job = SimulatedJob(tokens, indptr, np.full(2, 2, np.int32), np.full(2, 5000, np.int32))
    assert simulate(job, Policy.RADIX_LPM, kv_tokens=kv_tokens).num_running[0] == num_running
