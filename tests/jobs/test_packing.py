"""Parcels of a depth-first order, for replicas that take one after the other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchllm.estimate.packing import MOST_REPEATED, SLACK, WAVES, largest_first, pack, replica_loads
from batchllm.estimate.partition import shard_costs
from tests.jobs.test_partition import random_job


def documents(num_documents: int, questions: int, tokens: int, system: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(cost, path_cost) of questions of 10 tokens on documents under one system prompt."""
    first = np.arange(questions) == 0
    cost = np.tile(np.where(first, tokens + 10.0, 10.0), num_documents)
    path_cost = np.tile(np.where(first, system, system + tokens).astype(float), num_documents)
    cost[0] += system
    path_cost[0] = 0
    return cost, path_cost


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), num_items=st.integers(1, 60), num_replicas=st.integers(1, 9))
def test_parcels_are_ranges_within_their_part_of_a_share(seed: int, num_items: int, num_replicas: int) -> None:
    cost, path_cost = random_job(np.random.default_rng(seed), num_items)
    cuts = pack(cost, path_cost, num_replicas)
    assert cuts.dtype == np.int64
    assert (cuts[0], cuts[-1]) == (0, num_items)
    sizes = np.diff(cuts)
    assert (sizes > 0).all()
    waves = np.minimum(np.arange(len(sizes)) // num_replicas, len(WAVES) - 1)
    share = cost.sum() / num_replicas
    repeated = path_cost[cuts[:-1]]
    part = np.array(WAVES)[waves] * share
    costs = shard_costs(cost, path_cost, cuts)
    is_in_part = (costs <= np.maximum(part, 2 * repeated) + 1e-9) | (sizes == 1)
    within = np.maximum.reduceat(np.append(path_cost, 0.0)[1:], cuts[:-1])  # the most that an end in the parcel repeats
    assert (is_in_part | (costs <= np.minimum(share, within / MOST_REPEATED) + 1e-9)).all()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), num_items=st.integers(1, 60), num_replicas=st.integers(1, 5))
def test_replicas_are_as_full_as_the_smallest_parcels_allow(seed: int, num_items: int, num_replicas: int) -> None:
    cost, path_cost = random_job(np.random.default_rng(seed), num_items)
    cuts = pack(cost, path_cost, num_replicas)
    costs = shard_costs(cost, path_cost, cuts)
    order = largest_first(cost, path_cost, cuts)
    assert (np.diff(costs[order]) <= 0).all()
    loads = replica_loads(costs[order], num_replicas)
    assert loads.sum() == pytest.approx(costs.sum())
    assert loads.max() <= costs.sum() / num_replicas + costs.max()


def test_documents_are_not_torn_where_a_parcel_may_end_between_them() -> None:
    cost, path_cost = documents(400, questions=20, tokens=200, system=50)
    cuts = pack(cost, path_cost, 4)
    assert len(cuts) - 1 >= 3 * 4
    assert (cuts % 20 == 0).all()


def test_one_document_is_cut_below_its_root_and_paid_again() -> None:
    cost, path_cost = documents(1, questions=4000, tokens=200)
    cuts = pack(cost, path_cost, 4)
    costs = shard_costs(cost, path_cost, cuts)
    assert len(cuts) - 1 >= 4 * len(WAVES)
    assert costs.sum() == cost.sum() + 200 * (len(cuts) - 2)
    loads = replica_loads(costs[largest_first(cost, path_cost, cuts)], 4)
    assert loads.max() < 1.1 * loads.mean()


def test_a_small_job_is_not_cut_where_it_would_mostly_repeat() -> None:
    cost, path_cost = documents(2, questions=32, tokens=1000)
    assert pack(cost, path_cost, 2).tolist() == [0, 32, 64]
    cost, path_cost = documents(1, questions=64, tokens=1000)
    assert shard_costs(cost, path_cost, pack(cost, path_cost, 2)).sum() <= cost.sum() + 2 * 1000


def test_more_replicas_than_work_repeat_no_more_than_they_add() -> None:
    cost, path_cost = documents(3, questions=50, tokens=400)
    cuts = pack(cost, path_cost, 1000)
    assert shard_costs(cost, path_cost, cuts).sum() <= 2 * cost.sum()


def test_a_parcel_has_room_for_most_of_its_part() -> None:
    cost, path_cost = documents(1000, questions=4, tokens=100)
    cuts = pack(cost, path_cost, 8)
    costs = shard_costs(cost, path_cost, cuts)[: 8 * len(WAVES) - 8]
    parts = np.repeat(WAVES[:-1], 8) * cost.sum() / 8
    assert (costs >= (1 - SLACK) * parts - cost.max()).all()


def test_no_replica_is_refused() -> None:
    with pytest.raises(ValueError, match="num_replicas: expected at least 1, got 0"):
        pack(np.ones(3), np.zeros(3), 0)
