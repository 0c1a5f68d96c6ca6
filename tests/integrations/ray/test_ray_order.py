"""The plan of a job against a pipeline that answers it slice by slice: both answer all of it, and what that costs."""

import random
from pathlib import Path

import pytest

from benchmarks import ray_order
from tests.integrations.ray.conftest import ENGINE


@pytest.mark.usefixtures("cluster")
def test_both_orders_answer_the_job_and_the_plan_computes_fewer_tokens(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_order, "SLICE", 4)
    rng = random.Random(0)
    documents = [rng.choices(range(5, 60), k=100) for _ in range(8)]
    rows = [
        {"prompt_token_ids": documents[number % 8] + rng.choices(range(5, 60), k=4), "max_tokens": 1 + number % 3}
        for number in range(32)
    ]
    runs = ray_order.run(rows, model, ENGINE, rounds=1)
    [planned], [shuffled] = runs.values()
    assert planned["output_tokens"] == shuffled["output_tokens"] == sum(row["max_tokens"] for row in rows)
    assert planned["computed_prompt_tokens"] < 0.6 * shuffled["computed_prompt_tokens"]
    assert shuffled["computed_prompt_tokens"] >= 0.9 * sum(len(row["prompt_token_ids"]) for row in rows)


def test_the_orders_are_compared_by_their_medians() -> None:
    def runs(*computed: int) -> list[dict[str, float]]:
        return [
            {"computed_prompt_tokens": n, "cpu_s": n / 10, "wall_s": n / 20, "foreign_share": 0.0} for n in computed
        ]

    rows = [{"prompt_token_ids": [1] * 50, "max_tokens": 1}] * 2
    _, planned, shuffled, told = ray_order.report(rows, {"planned": runs(20, 30, 10), "shuffled": runs(50, 50, 90)})
    assert planned.split() == ["planned", "20", "20.0%", "2.0", "1.0"]
    assert shuffled.split() == ["shuffled", "50", "50.0%", "5.0", "2.5"]
    assert told == "planned: 2.50x fewer prompt tokens computed, 2.50x less CPU time, 2.50x faster"
    loud = [runs(20)[0] | {"foreign_share": 0.4}]
    assert ray_order.report(rows, {"planned": loud, "shuffled": loud})[-1].startswith("others had up to 40%")
