"""One engine runs the orders in turns, and what each computes is compared with the order of submission."""

from typing import Any

from benchmarks.contestant import Request
from benchmarks.peers.vllm_cpu import ORDERS
from benchmarks.vllm_order import report, run
from benchmarks.workloads import WORKLOADS


class FakeEngine:
    """Computes half of the prompts where they are in some order."""

    def __init__(self) -> None:
        self.variant = ""
        self.turns: list[str] = []

    def prepare(self, requests: list[Request]) -> Any:
        self.turns.append(self.variant)
        computed = sum(len(request.prompt_token_ids) for request in requests)
        facts = {"computed_prompt_tokens": computed if self.variant == "as submitted" else computed // 2}
        return lambda: ([[1] * request.max_tokens for request in requests], facts)


def test_orders_take_turns_and_are_compared_with_the_one_of_submission():
    engine = FakeEngine()
    runs = run(engine, [Request([1] * 10, 2), Request([2] * 30, 1)], rounds=2)
    assert engine.turns == ["as submitted", "sorted", "planned", "sorted", "planned", "as submitted"]
    assert {order: len(rows) for order, rows in runs.items()} == dict.fromkeys(ORDERS, 2)
    lines = [line.split() for line in report("W9", runs)]
    assert [line[-5:-2] for line in lines] == [
        ["40", "100.0%", "1.00x"],
        ["20", "50.0%", "2.00x"],
        ["20", "50.0%", "2.00x"],
    ]


def test_a_scaled_workload_has_fewer_groups_of_the_same_kind_in_the_same_pool():
    small = WORKLOADS["W5"].scaled(0.25)
    assert (small.groups, small.readers, small.kv_tokens) == (8, 8, 16384)
    assert len(small.rows()) == 64
    assert WORKLOADS["W3"].scaled(0.01).groups == 2
