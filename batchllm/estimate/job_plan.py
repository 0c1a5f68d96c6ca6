"""What a job would take and gain: the figures of `batchllm plan`. No model is run.

Token counts are exact for the assumed output lengths; seconds come from the roofline, a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np
from numpy.typing import NDArray

import batchllm_ext as ext
from batchllm.estimate.crossover import CLOSE, shortest_shared_read, smallest_close_kv_tokens
from batchllm.estimate.partition import ShardFigures
from batchllm.estimate.roofline import Device, step_seconds
from batchllm.estimate.simulate import Policy, SimulatedJob, Simulation, simulate
from batchllm.estimate.tokenized_job import TokenizedJob
from batchllm.models.description import ModelDescription
from batchllm.options import DEFAULTS, READER_COST_TOKENS
from batchllm.sharing import LevelFigures, level_figures, segment_depths

PAGE_SIZE = DEFAULTS.page_size


class PolicyFigures(msgspec.Struct, frozen=True):
    policy: Policy
    computed_prompt_tokens: int  # the sum of the four below
    first_tokens: int
    unshared_tokens: int
    evicted_tokens: int
    preempted_tokens: int
    saved_share: float
    recomputed_output_tokens: int
    preemptions: int
    steps: int
    peak_kv_tokens: int
    median_batch_tokens: float
    mean_batch_tokens: float
    predicted_s: float  # roofline


class CacheCrossover(msgspec.Struct, frozen=True):
    """The KV memory from which on a cache computes within 1 % of our prompt tokens."""

    policy: Policy
    kv_tokens: int | None  # None: at no size
    largest_kv_tokens: int  # from which on nothing is evicted
    least_computed_prompt_tokens: int  # with so much


class ReadCrossover(msgspec.Struct, frozen=True):
    """The prefix length from which on a decode step reads fewer bytes by reading it once; roofline."""

    median_readers: int
    prefix_tokens: int | None  # None: nothing is shared


class JobPlan(msgspec.Struct, frozen=True):
    lines: int
    failed_lines: int
    requests: int
    prompt_tokens: int
    distinct_prompt_tokens: int  # every prefix once
    assumed_output_tokens: int
    expected_output_tokens: int | None  # the mean that was assumed; None: every request generates its limit
    device: str
    model: str
    backend: str  # what runs the model
    kv_tokens: int
    kv_bytes_per_token: int
    windows: tuple[int, ...]  # window_left of each kind of layer; -1: all
    page_size: int
    max_batch_tokens: int
    levels: list[LevelFigures]
    policies: list[PolicyFigures]  # without those whose pool could not hold the largest request
    caches: list[CacheCrossover]
    read: ReadCrossover
    shards: list[ShardFigures] = []

    def of(self, policy: Policy) -> PolicyFigures:
        return next(figures for figures in self.policies if figures.policy is policy)


@dataclass(frozen=True)
class Assumptions:
    """What a plan assumes."""

    model_name: str
    model: ModelDescription
    device: Device
    kv_tokens: int  # size of the KV pool
    expected_output_tokens: int | None  # of every request, within its limit; None: the limit
    max_batch_tokens: int

    def output_tokens(self, max_output_tokens: NDArray[np.int32]) -> NDArray[np.int32]:
        if self.expected_output_tokens is None:
            return max_output_tokens
        return np.minimum(max_output_tokens, self.expected_output_tokens).astype(np.int32)


def plan_job(
    job: TokenizedJob, trie: ext.PrefixTrie, failed_lines: int, given: Assumptions, log: Callable[[str], None]
) -> tuple[JobPlan, dict[Policy, Simulation]]:
    """The figures, and the simulations they come from. `log` is told about each simulation.

    trie: of the job's prompts, with drop_last=1.
    """
    segments = ext.choose_segments(trie, reader_cost=READER_COST_TOKENS)
    simulated = SimulatedJob(job.tokens, job.indptr, given.output_tokens(job.max_output_tokens), job.max_output_tokens)

    def run(policy: Policy, kv_tokens: int) -> Simulation:
        log(f"simulating {policy.value} with {kv_tokens:,} KV tokens")
        return simulate(
            simulated,
            policy,
            kv_tokens=kv_tokens,
            page_size=PAGE_SIZE,
            max_batch_tokens=given.max_batch_tokens,
            lengths="learned",  # as `batchllm run` does
            windows=given.model.windows,
        )

    # Of a request at its longest, in whole pages; and of these, what a policy that drops K/V ever holds at once.
    whole_tokens = -(-(np.diff(job.indptr) + job.max_output_tokens - 1) // PAGE_SIZE) * PAGE_SIZE
    most_pages = given.model.most_pages(PAGE_SIZE, given.max_batch_tokens)
    held_tokens = whole_tokens if most_pages is None else np.minimum(whole_tokens, most_pages * PAGE_SIZE)

    policies = [policy for policy in Policy if not policy.keeps_all or whole_tokens.max() <= given.kv_tokens]
    if len(policies) < len(Policy):
        log(f"radix policies are left out: they keep all K/V, {whole_tokens.max():,} tokens of the longest request")
    simulations = {policy: run(policy, given.kv_tokens) for policy in policies}
    plan = JobPlan(
        lines=job.num_lines,
        failed_lines=failed_lines,
        requests=job.num_requests,
        prompt_tokens=len(job.tokens),
        distinct_prompt_tokens=trie.num_tokens + job.num_requests,  # a request's last one is its own
        assumed_output_tokens=int(simulated.output_tokens.sum()),
        expected_output_tokens=given.expected_output_tokens,
        device=given.device.name,
        model=given.model_name,
        backend=given.model.backend,
        kv_tokens=given.kv_tokens,
        kv_bytes_per_token=given.model.kv_bytes_per_token,
        windows=given.model.windows,
        page_size=PAGE_SIZE,
        max_batch_tokens=given.max_batch_tokens,
        levels=level_figures(
            segment_depths(segments.parent),
            segments.token_end.astype(np.int64) - segments.token_begin,
            segments.num_readers,
        ),
        policies=[policy_figures(simulation, given) for simulation in simulations.values()],
        caches=[
            cache_crossover(
                policy,
                partial(run, policy),
                simulations[Policy.BATCHLLM],
                smallest=int(held_tokens.max()),
                largest=int(whole_tokens.sum()),
            )
            for policy in (Policy.LRU, Policy.LRU_SORTED)
        ],
        read=read_crossover(segments, given.model),
    )
    return plan, simulations


def policy_figures(simulation: Simulation, given: Assumptions) -> PolicyFigures:
    batch_tokens = simulation.num_decode_tokens + simulation.num_prefill_tokens
    return PolicyFigures(
        policy=simulation.policy,
        computed_prompt_tokens=simulation.computed_prompt_tokens,
        first_tokens=simulation.first_tokens,
        unshared_tokens=simulation.unshared_tokens,
        evicted_tokens=simulation.evicted_tokens,
        preempted_tokens=simulation.preempted_tokens,
        saved_share=simulation.saved_share,
        recomputed_output_tokens=simulation.recomputed_output_tokens,
        preemptions=simulation.preemptions,
        steps=simulation.num_steps,
        peak_kv_tokens=simulation.peak_kv_tokens,
        median_batch_tokens=float(np.median(batch_tokens)),
        mean_batch_tokens=float(batch_tokens.mean()),
        predicted_s=float(step_seconds(simulation, given.model, given.device).sum()),
    )


def cache_crossover(
    policy: Policy, run: Callable[[int], Simulation], ours: Simulation, *, smallest: int, largest: int
) -> CacheCrossover:
    """run: the policy with a number of KV tokens. smallest, largest: KV tokens in which the job can run at all, and in
    which nothing is evicted."""

    def computed_prompt_tokens(kv_tokens: int) -> int:
        return run(kv_tokens).computed_prompt_tokens

    target = ours.computed_prompt_tokens
    least_computed, kv_tokens = computed_prompt_tokens(largest), None
    if least_computed <= CLOSE * target:
        kv_tokens = smallest_close_kv_tokens(computed_prompt_tokens, target, smallest, largest, PAGE_SIZE)
    return CacheCrossover(policy, kv_tokens, largest, least_computed)


def read_crossover(segments: ext.Segments, model: ModelDescription) -> ReadCrossover:
    """For the number of readers of a request's deepest segment, at the median over requests that share."""
    deepest = segments.request_segment[segments.request_segment >= 0]
    median_readers = int(np.median(segments.num_readers[deepest])) if len(deepest) else 1
    return ReadCrossover(median_readers, shortest_shared_read(model, median_readers))
