"""Curves and their axes."""

import re

import pytest

from batchllm.reports.charts import curve, nice_ceiling, time_text, time_ticks


def test_a_curve_is_drawn_to_scale() -> None:
    svg = str(curve("kv", "label", [0, 1, 4], [50, 100], limit=100, has_time=True))
    assert 'd="M0 100V50H250.0V0H1000.0V100Z"' in svg
    assert ">100</text>" in svg
    assert re.findall(r">([0-9]+ s)<", svg) == ["0 s", "1 s", "2 s", "3 s", "4 s"]


@pytest.mark.parametrize(("value", "ceiling"), [(1, 1), (1024, 1200), (64, 80), (13328, 16000), (3.2, 4), (1e9, 1e9)])
def test_an_axis_ends_at_a_round_number(value: float, ceiling: float) -> None:
    assert nice_ceiling(value) == pytest.approx(ceiling)


@pytest.mark.parametrize("span_s", [1e-9, 0.004, 0.7, 13, 60, 400, 5000, 90_000, 4e6, 1e9])
def test_an_axis_of_time_has_few_marks(span_s: float) -> None:
    ticks = time_ticks(span_s)
    assert 1 <= len(ticks) <= 7
    assert ticks[0] == 0
    assert ticks[-1] <= span_s * (1 + 1e-6)
    assert len({time_text(tick) for tick in ticks}) == len(ticks)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (0.002, "2 ms"), (15, "15 s"), (90, "1.5 min"), (3600, "1 h"), (86400, "1 d")]
)
def test_times_have_the_unit_that_fits(seconds: float, text: str) -> None:
    assert time_text(seconds) == text
