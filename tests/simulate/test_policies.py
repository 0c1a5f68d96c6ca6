"""What holds under every policy, and between them."""

import subprocess
import sys

import numpy as np
import pytest

import batchllm_ext as ext
from batchllm.estimate.simulate import Policy, SimulatedJob, simulate
from tests.planner.replay import ragged
from tests.simulate.jobs import SmallJob, random_job

EVERY_POLICY = pytest.mark.parametrize("policy", list(Policy))
ROOMY = {"kv_tokens": 100_000, "page_size": 1, "max_batch_tokens": 1000}


def distinct_prefixes(case: SmallJob) -> int:
    return len({tuple(prompt[: end + 1]) for prompt in case.prompts for end in range(len(prompt))})


@EVERY_POLICY
def test_tokens_add_up(policy):
    for seed in range(200):
        case = random_job(seed)
        result = simulate(case.job, policy, **case.pool, lengths=("known", "learned", "bound")[seed % 3])
        assert result.prompt_tokens == sum(map(len, case.prompts))
        assert result.first_tokens == distinct_prefixes(case)
        again = result.unshared_tokens + result.evicted_tokens + result.preempted_tokens
        assert result.computed_prompt_tokens == result.first_tokens + again
        assert min(result.unshared_tokens, result.evicted_tokens, result.preempted_tokens) >= 0
        assert result.num_sampled.sum() == result.output_tokens == sum(case.output_tokens)
        num_computed = int(result.num_decode_tokens.sum()) + int(result.num_prefill_tokens.sum())
        num_generated = result.output_tokens - len(case.prompts) + result.recomputed_output_tokens
        assert num_computed == result.computed_prompt_tokens + num_generated
        assert (result.num_decode_tokens + result.num_prefill_tokens).max() <= case.pool["max_batch_tokens"] or (
            policy in (Policy.RADIX_LPM, Policy.RADIX_DFS)  # a decode step is bounded by the cap alone
        )
        assert result.used_kv_tokens.max() == result.peak_kv_tokens <= case.pool["kv_tokens"]


@EVERY_POLICY
def test_max_num_seqs_caps_what_runs(policy):
    for seed in range(40):
        case = random_job(seed)
        assert simulate(case.job, policy, **case.pool, max_num_seqs=2).num_running.max() <= 2


@EVERY_POLICY
def test_a_job_without_requests_has_no_steps(policy):
    empty = np.zeros(0, np.int32)
    result = simulate(SimulatedJob(empty, np.zeros(1, np.int64), empty, empty), policy, kv_tokens=64)
    assert result.num_steps == 0
    assert result.saved_share == 0.0


@EVERY_POLICY
def test_the_first_request_that_can_never_fit_is_named(policy):
    tokens, indptr = ragged([[1] * 5, [2] * 40, [3] * 50])
    ones = np.ones(3, np.int32)
    job = SimulatedJob(tokens, indptr, ones, ones * 10)
    message = r"request 1 needs 13 KV pages of 4 tokens \(prompt 40 \+ max_output_tokens 10\), .* 50 tokens has 12"
    with pytest.raises(ValueError, match=message):
        simulate(job, policy, kv_tokens=50, page_size=4)
    fits = SimulatedJob(tokens, indptr, ones, ones)
    assert simulate(fits, policy, kv_tokens=52, page_size=4).output_tokens == 3


@EVERY_POLICY
def test_a_pool_of_a_window_and_a_step_holds_any_request_of_who_drops(policy):
    tokens, indptr = ragged([[1] * 100, [2] * 20])
    outputs = np.full(2, 30, np.int32)
    job = SimulatedJob(tokens, indptr, outputs, outputs)
    pool = {"page_size": 4, "max_batch_tokens": 8, "windows": (10, 5)}
    kv_tokens = 24  # 10 before the row, 3 that share a page with them, 8 of the step
    if policy.keeps_all:
        with pytest.raises(ValueError, match="request 0 needs 33 KV pages of 4 tokens"):
            simulate(job, policy, kv_tokens=128, **pool)
        return
    result = simulate(job, policy, kv_tokens=kv_tokens, **pool)
    assert result.peak_kv_tokens <= kv_tokens
    assert result.output_tokens == 60
    with pytest.raises(ValueError, match=r"request 0 needs 6 KV pages of 4 tokens .* 20 tokens has 5"):
        simulate(job, policy, kv_tokens=20, **pool)
    with pytest.raises(ValueError, match="request 0 needs 33 KV pages"):  # a layer that sees all keeps all
        simulate(job, policy, kv_tokens=128, **(pool | {"windows": (10, -1)}))


def test_a_cached_prefix_is_found_by_what_a_window_shows():
    """Six blocks; another prompt comes between two that share four. With a window of one block, it takes the first of
    these and needs no more; without, it takes the last one."""
    tokens, indptr = ragged([[1] * 16 + [5], [2] * 12, [1] * 16 + [6]])
    ones = np.ones(3, np.int32)
    job = SimulatedJob(tokens, indptr, ones, ones)
    pool = {"kv_tokens": 24, "page_size": 4, "max_batch_tokens": 8, "max_num_seqs": 1}
    found = simulate(job, Policy.LRU, windows=(4,), **pool)
    assert (found.computed_prompt_tokens, found.evicted_tokens) == (17 + 12 + 1, 0)
    not_found = simulate(job, Policy.LRU, **pool)
    assert (not_found.computed_prompt_tokens, not_found.evicted_tokens) == (17 + 12 + 5, 4)


@EVERY_POLICY
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_tokens": [1, 0]}, r"output_tokens\[1\]: expected at least 1, got 0"),
        ({"max_output_tokens": [1, 1]}, r"max_output_tokens\[1\]: expected at least output_tokens\[1\] \(2\), got 1"),
        ({"max_output_tokens": [2]}, "max_output_tokens: expected one entry for each of the 2 prompts, got 1"),
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"kv_tokens": 0}, "kv_tokens: expected at least 1, got 0"),
        ({"page_size": 0}, "page_size: expected at least 1, got 0"),
        ({"max_batch_tokens": 0}, "max_batch_tokens: expected at least 1, got 0"),
        ({"max_num_seqs": 0}, "expected at least 1, got 0"),
        ({"windows": []}, "windows: expected at least one"),
        ({"windows": [-1, -2]}, r"windows\[1\]: expected at least -1, got -2"),
        ({"kv_tokens": 2**31, "page_size": 1}, r"kv_tokens: more than 2\^31 - 1 pages"),
        (
            {"output_tokens": [1, 2**24 + 1], "max_output_tokens": [1, 2**30]},
            r"output_tokens\[1\]: expected at most 16777216, one for each step that is recorded, got 16777217",
        ),
    ],
)
def test_a_wrong_argument_is_named(policy, change, message):
    arguments = {"prompts": [[1], [2]], "output_tokens": [1, 2], "max_output_tokens": [1, 2], "kv_tokens": 64, **change}
    tokens, indptr = ragged(arguments.pop("prompts"))
    lengths = [np.array(arguments.pop(name), np.int32) for name in ("output_tokens", "max_output_tokens")]
    with pytest.raises(ValueError, match=message):
        simulate(SimulatedJob(tokens, indptr, *lengths), policy, **arguments)


@EVERY_POLICY
def test_what_a_pool_holds_beyond_the_job_changes_nothing(policy):
    for seed in range(20):
        case = random_job(seed)
        needs = [len(prompt) + bound for prompt, bound in zip(case.prompts, case.max_output_tokens, strict=True)]
        for page_size in (1, 3, 2**31 - 1):
            pages_of_all = sum(-(-need // page_size) for need in needs) + len(needs)  # shared segments round up, too
            results = [
                simulate(case.job, policy, **(case.pool | {"kv_tokens": num_pages * page_size, "page_size": page_size}))
                for num_pages in (2 * pages_of_all, 2**31 - 1)
            ]
            assert str(results[0]) == str(results[1])
            assert results[0].preemptions == results[0].evicted_tokens == 0


def test_an_lru_cache_that_holds_everything_shares_all_but_last_tokens():
    for seed in range(100):
        case = random_job(seed)
        result = simulate(case.job, Policy.LRU, **ROOMY)
        seen: set[tuple[int, ...]] = set()
        expected = 0
        for prompt in case.prompts:
            prefixes = [tuple(prompt[: end + 1]) for end in range(len(prompt))]
            expected += sum(prefix not in seen for prefix in prefixes[:-1]) + 1
            seen.update(prefixes)
        assert result.computed_prompt_tokens == expected
        assert result.evicted_tokens == result.preempted_tokens == 0


@pytest.mark.parametrize("policy", [Policy.RADIX_LPM, Policy.RADIX_DFS])
def test_a_radix_cache_that_holds_everything_computes_at_most_last_tokens_again(policy):
    for seed in range(100):
        case = random_job(seed)
        result = simulate(case.job, policy, **ROOMY, max_num_seqs=1)  # one after the other: no step has two prefills
        prefixes = [tuple(prompt) for prompt in case.prompts]
        num_inside_others = sum(
            any(other[: len(prompt)] == prompt for j, other in enumerate(prefixes) if j != i)
            for i, prompt in enumerate(prefixes)
        )
        assert result.unshared_tokens <= num_inside_others
        assert result.evicted_tokens == result.preempted_tokens == 0


def test_ours_without_reader_cost_reaches_the_bound():
    for seed in range(100):
        case = random_job(seed)
        result = simulate(case.job, Policy.BATCHLLM, **ROOMY, reader_cost=0.0)
        unique = ext.PrefixTrie(case.job.tokens, case.job.indptr, drop_last=1).num_tokens
        bound = sum(len(prompt) - 1 for prompt in case.prompts) - unique
        assert result.prompt_tokens - result.computed_prompt_tokens == bound


@pytest.mark.parametrize("policy", list(Policy))
def test_no_policy_saves_more_than_ours_where_no_prompt_continues_another(policy):
    """A last prompt token is always a request's own; a cache may share it with prompts that continue it."""
    for seed in range(150):
        case = random_job(seed, max_prompts=30)
        case.prompts = [[*prompt, 100 + i] for i, prompt in enumerate(case.prompts)]
        pool = {**case.pool, "kv_tokens": case.pool["kv_tokens"] + case.pool["page_size"], "page_size": 1}
        ours = simulate(case.job, Policy.BATCHLLM, **pool, reader_cost=0.0)
        theirs = simulate(case.job, policy, **pool)
        assert ours.computed_prompt_tokens - ours.preempted_tokens <= theirs.computed_prompt_tokens


def test_neither_simulator_nor_roofline_imports_torch():
    code = "import sys, batchllm.estimate.simulate, batchllm.estimate.roofline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
