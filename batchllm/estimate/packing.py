"""Cuts a job into parcels, which replicas take one after the other: contiguous ranges of its depth-first order.

    share   the cost of the job over the number of replicas
    wave    one parcel per replica; each wave takes half of what the waves before it leave of a share

           ├───────── 1/2 ─────────┤├─── 1/4 ───┤├ 1/8 ┤├16┤├16┤      a share, if every cost is as predicted

A replica that finishes early takes the next parcel, largest first, so the small parcels of the last waves even out
wrong predictions, and a replica that dies leaves little to do again. What a parcel shares with the one before it is
computed again (see partition.py), so a parcel ends where that is least within the last part of its room. Where even
that is much of what the parcel costs, it gets more room: a small job is not cut where it would mostly repeat.
"""

from __future__ import annotations

import heapq

import numpy as np

from batchllm.estimate.partition import FloatArray, IntArray, shard_costs

WAVES = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16)  # of a share
SLACK = 1 / 4  # of a parcel's room, in which its end is chosen
MOST_REPEATED = 1 / 4  # of a parcel's cost, by the one after it; a parcel as large as a share may cause more


def pack(cost: FloatArray, path_cost: FloatArray, num_replicas: int) -> IntArray:
    """Cuts items 0..n-1 into parcels, none empty, whose costs fall wave by wave.

    cost: float64 [n] >= 0, of an item after its predecessor: what it adds.
    path_cost: float64 [n] >= 0, what an item costs more where a parcel begins with it.

    Returns cuts, int64 [num_parcels + 1]: parcel p is the items [cuts[p], cuts[p + 1]). A parcel costs no more than its
    wave's part of a share or twice the path that it repeats, unless it is one item: however many replicas there are, it
    has room to add as much as it repeats. Where its end would repeat more than MOST_REPEATED of it, it may cost up to a
    share. Raises ValueError if num_replicas is less than 1.
    """
    if num_replicas < 1:
        raise ValueError(f"num_replicas: expected at least 1, got {num_replicas}")
    total = np.concatenate(([0.0], np.cumsum(cost, dtype=np.float64)))
    repeated = np.append(path_cost, 0.0)  # by where a parcel ends, by the next one
    num_items, share = len(cost), total[-1] / num_replicas

    def place_after(begin: int, room: float) -> int:
        return max(int(np.searchsorted(total, total[begin] + room, side="right")) - 1, begin + 1)

    def end_between(first: int, last: int) -> int:
        """The last of those that repeat least; what is left is taken whole."""
        return last if last == num_items else last - int(np.argmin(repeated[first : last + 1][::-1]))

    cuts = [0]
    while (begin := cuts[-1]) < num_items:
        wave = min((len(cuts) - 1) // num_replicas, len(WAVES) - 1)
        room = max(WAVES[wave] * share - repeated[begin], repeated[begin])
        first = place_after(begin, (1 - SLACK) * room)
        end = end_between(first, place_after(begin, room))
        enough = min(repeated[end] / MOST_REPEATED, share) - repeated[begin]
        if enough > room:
            end = end_between(first, place_after(begin, enough))
        cuts.append(end)
    return np.array(cuts, np.int64)


def largest_first(cost: FloatArray, path_cost: FloatArray, cuts: IntArray) -> IntArray:
    """[num_parcels]: the parcels in the order in which replicas take them."""
    order: IntArray = np.argsort(-shard_costs(cost, path_cost, cuts), kind="stable")
    return order


def replica_loads(parcel_costs: FloatArray, num_replicas: int) -> FloatArray:
    """[num_replicas]: what each has done when all is done, if whoever is free takes the next parcel, in that order."""
    loads = [0.0] * num_replicas
    for cost in parcel_costs.tolist():
        heapq.heapreplace(loads, loads[0] + cost)
    return np.array(loads)
