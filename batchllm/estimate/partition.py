"""Cuts a job into shards: contiguous ranges of its depth-first order, the most expensive one as cheap as possible.

    rank    0   1   2   3   4   5            a cut before rank 3 falls inside `doc A`: the second shard computes
    system ─┬─ doc A ─ q1  q2  q3  q4        system and doc A again, 500 tokens; one before rank 4 falls between
            └─ doc B ─ q5  q6                the documents and repeats only system

Depth-first, an item shares with all items before it no more than it shares with its neighbour, so what a cut repeats is
the prefix that the two items at the cut have in common: the path of ancestors there, at any depth of the tree.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class ShardFigures(msgspec.Struct, frozen=True):
    file: str
    lines: int
    requests: int
    prompt_tokens: int
    computed_prompt_tokens: int  # if every prefix that its requests share is computed once
    replicated_tokens: int  # of these, the path above its first line, which the shard before it also computes
    output_tokens: int
    predicted_s: float  # the cost by which shards are balanced; not the time of a run, whose steps overlap work


def partition(cost: FloatArray, path_cost: FloatArray, num_shards: int) -> IntArray:
    """Cuts items 0..n-1 into num_shards ranges, none empty, so that the largest cost of a range is least.

    cost: float64 [n] >= 0, of an item after its predecessor: what it adds.
    path_cost: float64 [n] >= 0, what an item costs more where a shard begins with it: the path above it, which its
        predecessor would have computed. At most the predecessor's cost and path_cost together.

    Returns cuts, int64 [num_shards + 1]: shard k is the items [cuts[k], cuts[k + 1]). Among all contiguous ranges the
    result is exact: a range never costs less than a part of it, so filling each shard up to a limit tells whether the
    limit can be kept, and the limit is searched. Raises ValueError where num_shards is not in 1..n.
    """
    num_items = len(cost)
    if not 1 <= num_shards <= num_items:
        raise ValueError(f"num_shards: expected 1 to {num_items}, the number of items, got {num_shards}")
    total = np.concatenate(([0.0], np.cumsum(cost, dtype=np.float64)))
    best = _fill(total, path_cost, num_shards, np.inf)
    too_low, high = 0.0, shard_costs(cost, path_cost, best).max()
    while too_low < (limit := (too_low + high) / 2) < high:
        cuts = _fill(total, path_cost, num_shards, limit)
        largest = _range_costs(total, path_cost, cuts).max()
        if largest <= limit:
            best, high = cuts, largest
        else:
            too_low = limit
    return best


def shard_costs(cost: FloatArray, path_cost: FloatArray, cuts: IntArray) -> FloatArray:
    """[num_shards]: the cost of each range, the path above its first item included."""
    total = np.concatenate(([0.0], np.cumsum(cost, dtype=np.float64)))
    return _range_costs(total, path_cost, cuts)


def _range_costs(total: FloatArray, path_cost: FloatArray, cuts: IntArray) -> FloatArray:
    costs: FloatArray = np.diff(total[cuts]) + path_cost[cuts[:-1]]
    return costs


def _fill(total: FloatArray, path_cost: FloatArray, num_shards: int, limit: float) -> IntArray:
    """Each shard as long as `limit` allows, but leaving an item for each shard to come; the last takes the rest."""
    num_items = len(path_cost)
    cuts = np.zeros(num_shards + 1, np.int64)
    for shard in range(1, num_shards):
        begin = cuts[shard - 1]
        end = np.searchsorted(total, total[begin] + limit - path_cost[begin], side="right") - 1
        cuts[shard] = np.clip(end, begin + 1, num_items - (num_shards - shard))
    cuts[num_shards] = num_items
    return cuts
