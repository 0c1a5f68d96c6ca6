"""The order in which another engine should get the prompts of a job: that in which our planner would start them.

job_order = plan_order(prompts, max_tokens)
outputs = job_order.restore(engine.generate(job_order.arrange(prompts)))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

import batchllm_ext as ext
from batchllm.options import READER_COST_TOKENS
from batchllm.sampling_params import MAX_INT32

Int32Array = NDArray[np.int32]
Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class JobOrder:
    """Depth-first, so that prompts with a common prefix are neighbours at every depth; groups with the larger ratio of
    decode to prefill go first."""

    order: Int32Array
    """int32 [num_prompts], prompts in starting order."""
    group: Int32Array
    """int32 [num_prompts], the group of a prompt's deepest shared prefix; -1 if it has none."""
    group_tokens: Int32Array
    """int32 [num_groups], tokens of that prefix beyond the next shorter shared one."""
    own_tokens: Int32Array
    """int32 [num_prompts], tokens of a prompt beyond its prefix."""

    def arrange(self, items: Sequence[Item]) -> list[Item]:
        """items: one per prompt, as submitted."""
        return [items[prompt] for prompt in self.order.tolist()]

    def restore(self, items: Sequence[Item]) -> list[Item]:
        """items: one per prompt, as arranged."""
        return [items[place] for place in np.argsort(self.order).tolist()]

    def primed(self, step_tokens: int) -> JobOrder:
        """The same for an engine that finds a prefix only once the step that computes it is over.

        The first reader of each group goes ahead of the others by `step_tokens` computed tokens, those of a step, and
        by no more, since prefixes computed ahead take memory.
        """
        heads = self._first_readers().tolist()
        is_head = np.isin(np.arange(len(self.order)), heads)
        group, own_tokens = self.group.tolist(), self.own_tokens.tolist()
        order, computed_tokens = [], 0
        ready_at = {-1: 0.0}  # by group, in computed tokens
        waiting = iter(heads)
        for prompt in self.order[~is_head[self.order]].tolist():
            while ready_at.get(group[prompt], math.inf) > computed_tokens and (head := next(waiting, -1)) >= 0:
                order.append(head)
                computed_tokens += int(self.group_tokens[group[head]]) + own_tokens[head]
                ready_at[group[head]] = computed_tokens + step_tokens
            order.append(prompt)
            computed_tokens += own_tokens[prompt]
        return replace(self, order=np.array([*order, *waiting], np.int32))

    def _first_readers(self) -> Int32Array:
        """One prompt per group, in the order of the job."""
        readers = self.order[self.group[self.order] >= 0]
        _, first = np.unique(self.group[readers], return_index=True)
        return readers[np.sort(first)]


def plan_order(prompts: Sequence[Sequence[int]], output_tokens: Sequence[int]) -> JobOrder:
    """prompts: token ids of each; an empty one starts last.
    output_tokens: how many each is expected to generate, or may generate at most; at least 1.

    Raises ValueError that names a prompt whose token ids are not 32-bit integers or whose output_tokens are invalid,
    and if the lengths of the two differ.
    """
    if len(prompts) != len(output_tokens):
        raise ValueError(f"output_tokens: expected one for each of {len(prompts)} prompts, got {len(output_tokens)}")
    rows = [_token_ids(index, prompt) for index, prompt in enumerate(prompts)]
    bounds = np.array([_output_tokens(index, value) for index, value in enumerate(output_tokens)], np.int64)
    lengths = np.array([len(row) for row in rows], np.int64)
    planned, empty = np.flatnonzero(lengths), np.flatnonzero(lengths == 0)
    tokens = np.concatenate([np.zeros(0, np.int32), *rows])
    indptr = np.concatenate(([0], np.cumsum(lengths[planned])))
    segments = ext.choose_segments(ext.PrefixTrie(tokens, indptr, drop_last=1), reader_cost=READER_COST_TOKENS)
    planner = ext.BatchPlanner(
        tokens,
        indptr,
        segments,
        max_output_tokens=np.minimum(bounds, MAX_INT32 - lengths)[planned].astype(np.int32),
        num_pages=MAX_INT32,  # the other engine knows how much memory there is
    )
    group = np.full(len(rows), -1, np.int32)
    group[planned] = segments.request_segment
    shared_tokens = np.append(segments.token_end, 0)[group]  # of group -1 the last, 0
    return JobOrder(
        order=np.concatenate((planned[planner.order], empty)).astype(np.int32),
        group=group,
        group_tokens=segments.token_end - segments.token_begin,
        own_tokens=(lengths - shared_tokens).astype(np.int32),
    )


def _token_ids(index: int, prompt: Sequence[int]) -> Int32Array:
    ids = np.asarray(prompt)
    if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.min() < -MAX_INT32 or ids.max() > MAX_INT32):
        raise ValueError(f"prompts[{index}]: expected integers of 32 bits, got {ids.dtype} of shape {ids.shape}")
    return ids.reshape(-1).astype(np.int32)


def _output_tokens(index: int, value: int) -> int:
    if not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"output_tokens[{index}]: expected an integer, at least 1, got {value!r}")
    return min(int(value), MAX_INT32)
