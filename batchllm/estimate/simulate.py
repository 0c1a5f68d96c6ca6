"""What a job would cost under the scheduling policies of several engines and ours, replayed without a model.

    job = SimulatedJob(tokens, indptr, output_tokens, max_output_tokens)
    simulate(job, Policy.LRU, kv_tokens=500_000).saved_share

A simulation counts tokens exactly; `batchllm.estimate.roofline` turns its steps into seconds, by a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import batchllm_ext as ext
from batchllm.options import READER_COST_TOKENS

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]
Lengths = Literal["known", "learned", "bound"]
Order = Literal["decode_first", "arrival", "blend"]


@dataclass(frozen=True, eq=False)
class SimulatedJob:
    """Prompts, and the length of each output. Generated text is assumed to differ between requests."""

    tokens: Int32Array
    """int32 [num_tokens], all prompts one after the other."""
    indptr: Int64Array
    """int64 [num_requests + 1]; prompt i is tokens[indptr[i] : indptr[i + 1]], at least one token."""
    output_tokens: Int32Array
    """int32 [num_requests], at least 1 each."""
    max_output_tokens: Int32Array
    """int32 [num_requests], at least output_tokens: the limits known beforehand."""


class Policy(str, Enum):
    """A scheduler and its KV cache."""

    NONE = "none"
    LRU = "lru"
    LRU_SORTED = "lru_sorted"
    RADIX_LPM = "radix_lpm"
    RADIX_DFS = "radix_dfs"
    BATCHLLM = "batchllm"
    BATCHLLM_SINGLE = "batchllm_single"
    BATCHLLM_BLEND = "batchllm_blend"

    @property
    def description(self) -> str:
        return _DESCRIPTIONS[self]

    @property
    def keeps_all(self) -> bool:
        """Whether it keeps K/V that no layer sees any more."""
        return self in (Policy.RADIX_LPM, Policy.RADIX_DFS)


_DESCRIPTIONS = {
    Policy.NONE: "BatchLLM's planner without any sharing",
    Policy.LRU: "first come, first served, full blocks in an LRU cache, capped batch (like vLLM)",
    Policy.LRU_SORTED: "the same, with the prompts sorted",
    Policy.RADIX_LPM: "radix cache, longest cached prefix first (like SGLang)",
    Policy.RADIX_DFS: "radix cache, depth-first by weight (like SGLang)",
    Policy.BATCHLLM: "BatchLLM: shared segments at any depth, decode-heavy groups first",
    Policy.BATCHLLM_SINGLE: "BatchLLM with one shared segment per request",
    Policy.BATCHLLM_BLEND: "BatchLLM with groups taken from both ends by decode/prefill ratio (like BlendServe)",
}


@dataclass(frozen=True, eq=False)
class Simulation:
    """What a policy did, step by step."""

    policy: Policy
    windows: tuple[int, ...]
    """Of the model's layers, the window_left of each kind: positions before its own that a row sees; -1: all."""

    num_decode_tokens: Int32Array
    """int32 [num_steps]."""
    num_prefill_tokens: Int32Array
    """int32 [num_steps]; includes generated tokens that are computed again."""
    num_sampled: Int32Array
    """int32 [num_steps]; rows whose logits are sampled: output tokens that the step yields."""
    num_running: Int32Array
    """int32 [num_steps]; requests that hold KV."""
    used_kv_tokens: Int64Array
    """int64 [num_steps]; held by running requests and pinned segments, in whole pages. Pages that are only cached count
    as free."""
    attention_pairs: Int64Array
    """int64 [num_steps, num_windows]; (query row, key it sees), in a layer with that window. FLOPs = 4 * head_dim *
    num_qo_heads * num_layers * pairs."""
    kv_tokens_read: Int64Array
    """int64 [num_steps, num_windows]; KV positions that attention loads, in a layer with that window: ours a segment
    once per step for all its readers, the others a request's context for each request, as far as rows see it."""

    prompt_tokens: int
    computed_prompt_tokens: int
    """first_tokens + unshared_tokens + evicted_tokens + preempted_tokens."""
    first_tokens: int
    """Distinct prefixes: somebody had to compute them."""
    unshared_tokens: int
    """Computed again because the policy would not share them with a pool of any size (blocks, order within a step,
    segments not chosen, the last token of a prompt)."""
    evicted_tokens: int
    """Computed again, although an unbounded pool would still have had them."""
    preempted_tokens: int
    """Prompt tokens that a request had and lost when it was preempted."""
    recomputed_output_tokens: int
    """Generated tokens that a request had and lost when it was preempted."""
    output_tokens: int
    preemptions: int
    peak_kv_tokens: int
    """The largest of used_kv_tokens."""

    @property
    def num_steps(self) -> int:
        return len(self.num_running)

    @property
    def saved_share(self) -> float:
        """Prompt tokens not computed, as a share of all; 0 for a job without requests."""
        return 1 - self.computed_prompt_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


def simulate(
    job: SimulatedJob,
    policy: Policy,
    *,
    kv_tokens: int,
    page_size: int = 16,
    max_batch_tokens: int = 2048,
    max_num_seqs: int | None = None,
    lengths: Lengths = "known",
    reader_cost: float = READER_COST_TOKENS,
    order: Order | None = None,
    windows: Sequence[int] = (-1,),
) -> Simulation:
    """Runs the job to its end under a policy.

    kv_tokens: size of the KV pool, in tokens. page_size: radix policies share to the token whatever it is.
    max_num_seqs: the most requests that run at once. None is the policy's own limit: 256 for LRU (vLLM's
    default), 2,048 for RADIX (the least that SGLang derives), no bound for ours.
    lengths, reader_cost, order: only for ours. What the planner knows about output lengths: the truth, what it learns
    while the job runs, or max_output_tokens. The cost of a shared segment for each reader, in tokens. The order of
    groups; None is the policy's own.
    windows: of the model's layers, the window_left of each kind (ModelDescription.windows). If all kinds have one, LRU
    and ours drop the K/V that no later row sees in the widest; RADIX keeps all.

    Raises ValueError for arrays that do not fit together, and for the first request that the pool can never hold at
    its max_output_tokens, before anything runs and identically for every policy that keeps the same K/V.
    """
    arrays = (job.tokens, job.indptr, job.output_tokens, job.max_output_tokens)
    pool: dict[str, Any] = {
        "kv_tokens": kv_tokens,
        "page_size": page_size,
        "max_batch_tokens": max_batch_tokens,
        "windows": windows,
    }
    if policy in (Policy.LRU, Policy.LRU_SORTED):
        cap = 256 if max_num_seqs is None else max_num_seqs
        result = ext.simulate_lru(*arrays, **pool, max_num_seqs=cap, is_sorted=policy is Policy.LRU_SORTED)
    elif policy in (Policy.RADIX_LPM, Policy.RADIX_DFS):
        cap = 2048 if max_num_seqs is None else max_num_seqs
        result = ext.simulate_radix(
            *arrays, **pool, max_running_requests=cap, order="lpm" if policy is Policy.RADIX_LPM else "dfs"
        )
    else:
        levels: Any = {Policy.NONE: 0, Policy.BATCHLLM_SINGLE: 1}.get(policy)
        trie = ext.PrefixTrie(job.tokens, job.indptr, drop_last=1)
        segments = ext.choose_segments(trie, levels, reader_cost=reader_cost)
        if order is None:
            order = "blend" if policy is Policy.BATCHLLM_BLEND else "decode_first"
        result = ext.simulate_planned(
            *arrays, segments, **pool, lengths=lengths, order=order, max_running_requests=max_num_seqs
        )
    return Simulation(policy=policy, windows=tuple(windows), **result)
