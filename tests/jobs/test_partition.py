"""The partition of a depth-first order into shards."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchllm.estimate.partition import partition, shard_costs


def random_job(rng: np.random.Generator, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """(cost, path_cost) of sorted random prompts: whole numbers, so that sums are exact."""
    lengths, branch = rng.integers(1, 12), rng.choice([2, 3, 50])
    prompts = sorted(tuple(rng.integers(0, branch, rng.integers(1, lengths + 1))) for _ in range(num_items))
    shared = [0] + [
        next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        for a, b in itertools.pairwise(prompts)
    ]
    own = np.array([len(p) for p in prompts]) - shared + rng.integers(0, 6, num_items)
    return own.astype(float), np.array(shared, float)


def least_largest_cost(cost: np.ndarray, path_cost: np.ndarray, num_shards: int) -> float:
    """By trying every way to cut."""
    n = len(cost)
    return min(
        max(cost[a:b].sum() + path_cost[a] for a, b in itertools.pairwise((0, *inner, n)))
        for inner in itertools.combinations(range(1, n), num_shards - 1)
    )


def check_is_partition(cuts: np.ndarray, num_items: int, num_shards: int) -> None:
    assert cuts.dtype == np.int64
    assert (cuts[0], cuts[-1], len(cuts)) == (0, num_items, num_shards + 1)
    assert (np.diff(cuts) > 0).all()


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32), num_items=st.integers(1, 9), data=st.data())
def test_no_other_cuts_have_a_cheaper_largest_shard(seed: int, num_items: int, data: st.DataObject) -> None:
    cost, path_cost = random_job(np.random.default_rng(seed), num_items)
    num_shards = data.draw(st.integers(1, num_items))
    cuts = partition(cost, path_cost, num_shards)
    check_is_partition(cuts, num_items, num_shards)
    costs = [cost[a:b].sum() + path_cost[a] for a, b in itertools.pairwise(cuts)]
    assert shard_costs(cost, path_cost, cuts).tolist() == costs
    assert max(costs) == least_largest_cost(cost, path_cost, num_shards)


def test_a_cut_is_moved_to_where_its_path_is_short() -> None:
    # Two documents of 100 tokens, 3 and 5 questions of 1 token: the halves by count would compute the second twice.
    cost = np.array([101, 1, 1, 101, 1, 1, 1, 1], float)
    path_cost = np.array([0, 100, 100, 0, 100, 100, 100, 100], float)
    cuts = partition(cost, path_cost, 2)
    assert cuts.tolist() == [0, 3, 8]
    assert shard_costs(cost, path_cost, cuts).tolist() == [103, 105]


def test_a_job_under_one_root_is_balanced_below_it() -> None:
    rng = np.random.default_rng(0)
    own = rng.integers(1, 100, 5000).astype(float)
    root = 1000.0
    cost, path_cost = own.copy(), np.full(5000, root)
    cost[0] += root
    path_cost[0] = 0
    costs = shard_costs(cost, path_cost, partition(cost, path_cost, 8))
    assert costs.max() <= own.sum() / 8 + root + own.max()


def test_free_items_are_cut_like_any_others() -> None:
    for num_shards in (1, 2, 5):
        check_is_partition(partition(np.zeros(5), np.zeros(5), num_shards), 5, num_shards)


@pytest.mark.parametrize("num_shards", [0, -1, 4])
def test_a_number_of_shards_that_items_cannot_fill_is_refused(num_shards: int) -> None:
    with pytest.raises(ValueError, match=f"num_shards: expected 1 to 3, the number of items, got {num_shards}"):
        partition(np.ones(3), np.zeros(3), num_shards)


def test_a_million_items_take_seconds() -> None:
    rng = np.random.default_rng(1)
    cost, path_cost = rng.random(1_000_000) + 1, rng.random(1_000_000)
    start = time.perf_counter()
    cuts = partition(cost, path_cost, 1000)
    assert time.perf_counter() - start < 10
    costs = shard_costs(cost, path_cost, cuts)
    assert costs.max() / costs.mean() < 1.01
