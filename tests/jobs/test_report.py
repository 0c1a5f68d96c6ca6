"""What a person sees."""

import io
from typing import Any

import pytest
from rich.console import Console

from batchllm.jobs.run import JobSummary
from batchllm.outputs import JobProgress
from batchllm.reports.run_text import (
    Pace,
    duration,
    progress_line,
    show_progress,
    summary_rows,
    summary_table,
    tokens_left,
)

STATS = {
    "num_requests": 4,
    "prompt_tokens": 2000,
    "computed_prompt_tokens": 500,
    "output_tokens": 300,
    "steps": 12,
    "preemptions": 1,
    "peak_kv_tokens": 4096,
    "num_threads": 2,
    "cpu_s": 1.5,
    "cpu_wait_s": 0.25,
    "products": {"64x32 float32": "packed"},
    "seconds": {"load": 1.0, "forward": 3.5, "total": 4.0, "a phase of tomorrow": 0.25},
}


def progress(finished: int = 1, elapsed_s: float = 10.0, **fields: Any) -> JobProgress:
    known = {"num_requests": 4, "scheduled_prompt_tokens": 1500, "saved_prompt_tokens": 750, "output_tokens": 100}
    known |= {"remaining_output_tokens": 100, "computed_prompt_tokens": 900, "remaining_prompt_tokens": 400}
    known |= {"kv_tokens": 64, "kv_cache_tokens": 256}
    return JobProgress(**known | fields | {"finished_requests": finished, "elapsed_s": elapsed_s})


def test_progress_line_has_requests_speed_savings_memory_and_time_left() -> None:
    line = "1/4 requests · 10 output tokens/s · 90 prompt tokens/s · 750 prompt tokens saved (50.0%) · KV 25.0% · "
    assert progress_line(progress(), 5.0) == line + "0:05 left"
    assert progress_line(progress(), None) == line + "? left"


def test_progress_line_of_a_job_that_has_done_nothing() -> None:
    nothing = JobProgress(4, 0, 0, 0, 0, 10, 0.0)
    assert Pace().seconds_left(nothing) is None
    assert progress_line(nothing, None) == (
        "0/4 requests · 0 output tokens/s · 0 prompt tokens/s · 0 prompt tokens saved (0.0%) · KV 0.0% · ? left"
    )


def test_time_left_is_that_of_the_tokens_left_not_of_the_lines() -> None:
    assert Pace().seconds_left(progress()) == pytest.approx(5.0)  # 500 of 1,500 tokens, at 100 per second
    assert Pace().seconds_left(progress(finished=3)) == pytest.approx(5.0)
    assert Pace().seconds_left(progress(remaining_output_tokens=1_000_000)) is None, "less than 1 % is done"


def test_time_left_follows_the_pace_of_late() -> None:
    pace, tokens = Pace(), 0
    for second in range(1, 101):
        tokens += 100 if second <= 50 else 10
        now = progress(elapsed_s=float(second), computed_prompt_tokens=tokens, output_tokens=0)
        left = pace.seconds_left(now)
    assert left == pytest.approx(500 / 10, rel=0.1)


def test_output_to_come_is_expected_by_how_often_requests_ended_early() -> None:
    assert tokens_left(progress(ended_early=0)) == 400 + 100
    # One in ten tokens was a request's last: three requests with 1,000 tokens each to go will not take them.
    many = progress(ended_early=10, remaining_output_tokens=3000, remaining_prompt_tokens=0)
    assert tokens_left(many) == pytest.approx(30, rel=1e-3)
    few = progress(ended_early=10, remaining_output_tokens=3, remaining_prompt_tokens=0)
    assert tokens_left(few) == pytest.approx(3)
    assert tokens_left(progress(finished=4, ended_early=1, remaining_output_tokens=0, remaining_prompt_tokens=0)) == 0


def test_without_a_terminal_progress_is_a_line_per_minute() -> None:
    log = io.StringIO()
    with show_progress(Console(file=log, width=20)) as on_progress:
        for elapsed_s in (1.0, 5.0, 60.9, 61.0, 90.0, 122.0):
            on_progress(progress(elapsed_s=elapsed_s))
    speeds = [line.split(" · ")[1] for line in log.getvalue().splitlines()]
    assert speeds == ["100 output tokens/s", "2 output tokens/s", "1 output tokens/s"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_on_a_terminal_progress_is_a_bar_and_all_that_a_line_tells(width: int) -> None:
    log = io.StringIO()
    with show_progress(Console(file=log, width=width, force_terminal=True)) as on_progress:
        on_progress(progress())
    assert "━" in log.getvalue()
    assert "1/4 requests" in log.getvalue()
    assert "0:05 left" in log.getvalue()


def test_summary_has_every_figure_and_every_phase() -> None:
    rows = {name.strip(): value for name, value in summary_rows(JobSummary(3, 1, STATS))}
    assert rows == {
        "lines answered": "3",
        "lines failed": "1",
        "prompt tokens": "2,000",
        "computed": "500",
        "saved": "75.0%",
        "output tokens": "300",
        "output tokens/s": "75.0",
        "steps": "12",
        "preemptions": "1",
        "peak KV tokens": "4,096",
        "wall time to load the model": "1.00 s",
        "wall time of the job": "4.00 s",
        "forward": "3.50 s",
        "a phase of tomorrow": "0.25 s",
        "threads": "2",
        "their CPU time": "1.50 s",
        "waits for a CPU that others had": "0.25 s",
        "product with 64x32 float32": "packed",
    }


def test_summary_tells_of_lines_that_are_not_what_they_seem() -> None:
    rows = dict(summary_rows(JobSummary(3, 1, STATS, num_other_model=2, num_cut=1)))
    assert (rows["  naming another model"], rows["  cut at the model's context length"]) == ("2", "1")
    assert not [name for name in dict(summary_rows(JobSummary(3, 1, STATS))) if "another" in name or "cut" in name]


def test_summary_of_a_job_without_a_request() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(summary_table(JobSummary(0, 2, {})))
    assert list(summary_rows(JobSummary(0, 2, {}))) == [("lines answered", "0"), ("lines failed", "2")]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
