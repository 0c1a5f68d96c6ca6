"""The order that other engines get a job in is the planner's, and what was arranged is restored."""

from itertools import pairwise

import numpy as np
import pytest

import batchllm_ext as ext
from batchllm.estimate.simulate import Policy, SimulatedJob, Simulation, simulate
from batchllm.integrations.job_order import plan_order
from batchllm.options import READER_COST_TOKENS
from tests.engine.tiny import shared_prompts


def tree(num_documents: int, readers: int, system: int = 30, document: int = 200, own: int = 20) -> list[list[int]]:
    """Shuffled prompts: a system prompt, one of the documents, and a question."""
    rng = np.random.default_rng(0)
    header = rng.integers(0, 1000, system).tolist()
    texts = [header + rng.integers(0, 1000, document).tolist() for _ in range(num_documents)]
    prompts = [text + rng.integers(0, 1000, own).tolist() for text in texts for _ in range(readers)]
    return [prompts[place] for place in rng.permutation(len(prompts))]


def neighbours_shared_tokens(prompts: list[list[int]], order: list[int]) -> int:
    def common(a: list[int], b: list[int]) -> int:
        return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    return sum(common(prompts[a], prompts[b]) for a, b in pairwise(order))


@pytest.mark.parametrize("seed", range(5))
def test_the_order_is_the_planner_s(seed):
    prompts = shared_prompts(40, seed)
    output_tokens = np.random.default_rng(seed).integers(1, 50, len(prompts)).astype(np.int32)
    tokens, indptr = np.concatenate(prompts).astype(np.int32), np.cumsum([0, *map(len, prompts)])
    segments = ext.choose_segments(ext.PrefixTrie(tokens, indptr, drop_last=1), reader_cost=READER_COST_TOKENS)
    planner = ext.BatchPlanner(tokens, indptr, segments, max_output_tokens=output_tokens, num_pages=10_000)
    job_order = plan_order(prompts, output_tokens.tolist())
    np.testing.assert_array_equal(job_order.order, planner.order)
    np.testing.assert_array_equal(job_order.group, segments.request_segment)


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_share_all_that_an_order_can_make_them_share(seed):
    """But for what is not worth a segment: a few tokens."""
    prompts = tree(num_documents=6, readers=5) + tree(num_documents=3, readers=2, document=90)
    job_order = plan_order(prompts, [1 + (seed * i) % 7 for i in range(len(prompts))])
    by_tokens = sorted(range(len(prompts)), key=lambda i: prompts[i])
    largest = neighbours_shared_tokens(prompts, by_tokens)
    assert neighbours_shared_tokens(prompts, job_order.order.tolist()) >= largest - 2 * len(prompts)


def test_what_was_arranged_is_restored():
    prompts = shared_prompts(30)
    for job_order in (plan_order(prompts, [5] * 30), plan_order(prompts, [5] * 30).primed(50)):
        assert sorted(job_order.order.tolist()) == list(range(30))
        assert job_order.arrange(prompts) != prompts
        assert job_order.restore(job_order.arrange(prompts)) == prompts


def test_the_group_with_more_to_generate_starts_first():
    short, long = [1] * 20, [2] * 20
    prompts = [[*short, 5], [*long, 5], [*short, 6], [*long, 6], [7], []]
    job_order = plan_order(prompts, [3, 30, 3, 30, 1, 1])
    assert job_order.order.tolist() == [1, 3, 4, 0, 2, 5]  # the loner has the ratio 1, the empty prompt comes last
    assert job_order.group[[0, 2]].tolist() == [job_order.group[0]] * 2 != job_order.group[[1, 3]].tolist()
    assert job_order.group[4:].tolist() == [-1, -1]
    assert job_order.own_tokens.tolist() == [1, 1, 1, 1, 1, 0]
    assert job_order.group_tokens.tolist() == [20, 20]


def test_tokens_may_be_arrays_and_lengths_of_any_size():
    prompts = [np.array([4, 5, 6], np.uint16), np.array([4, 5, 7])]
    assert sorted(plan_order(prompts, [2**40, 1]).order.tolist()) == [0, 1]
    assert plan_order([], []).order.tolist() == []


def radix(prompts: list[list[int]], order: np.ndarray, step_tokens: int) -> Simulation:
    """SGLang as the simulator has it: what a step computes is found from the next step on."""
    arranged = [prompts[prompt] for prompt in order.tolist()]
    lengths = np.full(len(prompts), 8, np.int32)
    tokens, indptr = np.concatenate(arranged).astype(np.int32), np.cumsum([0, *map(len, arranged)])
    job = SimulatedJob(tokens, indptr, lengths, lengths)
    return simulate(job, Policy.RADIX_LPM, kv_tokens=10_000, max_batch_tokens=step_tokens)


def test_a_primed_order_computes_each_document_once_where_a_step_shares_nothing_in_itself():
    prompts = tree(num_documents=100, readers=6)
    planned = plan_order(prompts, [8] * len(prompts))
    submitted, ordered, primed = (
        radix(prompts, order, step_tokens=2000)
        for order in (np.arange(len(prompts)), planned.order, planned.primed(2000).order)
    )
    assert min(submitted.computed_prompt_tokens, ordered.computed_prompt_tokens) > 2.5 * primed.first_tokens
    assert primed.computed_prompt_tokens < 1.06 * primed.first_tokens


def test_first_readers_go_ahead_by_the_tokens_of_a_step_and_no_more():
    prompts = [[document] * 100 + [question] * 10 for document in range(6) for question in range(10, 13)]
    job_order = plan_order(prompts, [8] * len(prompts))
    names = [f"{document}{question}" for document in "ABCDEF" for question in (0, 1, 2)]
    assert " ".join(job_order.arrange(names)) == "A0 A1 A2 B0 B1 B2 C0 C1 C2 D0 D1 D2 E0 E1 E2 F0 F1 F2"
    # A first reader computes 110 tokens, the others 10: 440 are computed when A1 starts, of which 330 after A0.
    assert " ".join(job_order.primed(250).arrange(names)) == "A0 B0 C0 D0 A1 A2 E0 B1 B2 C1 C2 F0 D1 D2 E1 E2 F1 F2"


def test_prompts_that_share_nothing_are_not_moved_by_priming():
    job_order = plan_order([[i] * 9 for i in range(5)], [1, 5, 3, 2, 4])
    assert job_order.order.tolist() == job_order.primed(100).order.tolist() == [1, 4, 2, 3, 0]


@pytest.mark.parametrize(
    ("prompts", "output_tokens", "message"),
    [
        ([[1], [2]], [1], r"output_tokens: expected one for each of 2 prompts, got 1"),
        ([[1], [2]], [1, 0], r"output_tokens\[1\]: expected an integer, at least 1, got 0"),
        ([[1], [2]], [1, 1.5], r"output_tokens\[1\]: expected an integer, at least 1, got 1.5"),
        ([[1], ["a"]], [1, 1], r"prompts\[1\]: expected integers of 32 bits, got <U1 of shape \(1,\)"),
        ([[1], [2**31]], [1, 1], r"prompts\[1\]: expected integers of 32 bits, got int64"),
        ([[[1]]], [1], r"prompts\[0\]: expected integers of 32 bits, got int64 of shape \(1, 1\)"),
    ],
)
def test_what_is_no_job_is_refused_by_name(prompts, output_tokens, message):
    with pytest.raises(ValueError, match=message):
        plan_order(prompts, output_tokens)
