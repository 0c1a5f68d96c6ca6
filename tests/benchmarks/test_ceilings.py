"""What a machine is measured to do, on a model of tiny matrices."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from benchmarks import ceilings
from benchmarks.compare_report import COLUMNS
from tests.benchmarks.test_bound import TINY


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SECONDS_A_TIME", 0.0)
    monkeypatch.setattr(ceilings, "READ_BYTES", 1 << 26)


@pytest.mark.parametrize("arithmetic", ceilings.ARITHMETIC)
def test_products_are_measured_in_every_precision(short: None, arithmetic: str) -> None:
    measured = ceilings.measure(TINY, arithmetic)
    assert set(measured) <= set(COLUMNS)
    assert set(measured) == {name for name in COLUMNS if "gflops" in name} | {"read_gb_per_s"}
    assert measured["read_gb_per_s"] > 0


@pytest.mark.parametrize("times", [(3.0, 2.0), (2.0, 3.0)])
def test_of_plain_and_packed_products_the_faster_counts(
    monkeypatch: pytest.MonkeyPatch, times: tuple[float, float]
) -> None:
    taken = itertools.cycle(times)

    def timed(run: Callable[[], object]) -> float:
        run()
        return next(taken)

    monkeypatch.setattr(ceilings, "best_s", timed)
    assert ceilings.linear_s(4, (16, 8), "float32") == 2.0
