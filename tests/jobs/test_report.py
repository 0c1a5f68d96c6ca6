"""What a person sees."""

import io

import pytest
from rich.console import Console

from batchllm.jobs.run import JobSummary
from batchllm.outputs import JobProgress
from batchllm.reports.run_text import duration, progress_line, show_progress, summary_rows, summary_table

STATS = {
    "num_requests": 4,
    "prompt_tokens": 2000,
    "computed_prompt_tokens": 500,
    "output_tokens": 300,
    "steps": 12,
    "preemptions": 1,
    "peak_kv_tokens": 4096,
    "seconds": {"load": 1.0, "forward": 3.5, "total": 4.0, "a phase of tomorrow": 0.25},
}


def progress(finished: int, scheduled: int, elapsed_s: float, remaining: int = 100) -> JobProgress:
    return JobProgress(4, finished, scheduled, scheduled // 2, 100, remaining, elapsed_s)


def test_progress_line_has_requests_speed_savings_and_time_left() -> None:
    running = progress(finished=1, scheduled=1500, elapsed_s=10.0)
    line = "1/4 requests · 10 output tokens/s · 750 prefix tokens saved (50.0%) · "
    assert progress_line(running) == line + "0:10 left"
    assert progress_line(progress(finished=3, scheduled=1500, elapsed_s=10.0, remaining=300)).endswith("0:30 left")
    assert progress_line(progress(finished=3, scheduled=1500, elapsed_s=10.0, remaining=99999)).endswith("? left")


def test_progress_line_of_a_job_that_has_done_nothing() -> None:
    line = progress_line(JobProgress(4, 0, 0, 0, 0, 10, 0.0))
    assert line == "0/4 requests · 0 output tokens/s · 0 prefix tokens saved (0.0%) · ? left"


def test_without_a_terminal_progress_is_a_line_now_and_then() -> None:
    log = io.StringIO()
    with show_progress(Console(file=log, width=20)) as on_progress:
        for elapsed_s in (0.0, 1.0, 4.9, 5.0, 6.0, 11.0):
            on_progress(progress(finished=1, scheduled=1000, elapsed_s=elapsed_s))
    assert [line.split(" · ")[1] for line in log.getvalue().splitlines()] == [
        "100,000,000,000 output tokens/s",
        "20 output tokens/s",
        "9 output tokens/s",
    ]


def test_on_a_terminal_progress_is_a_bar() -> None:
    log = io.StringIO()
    with show_progress(Console(file=log, width=120, force_terminal=True)) as on_progress:
        on_progress(progress(finished=1, scheduled=1500, elapsed_s=10.0))
    assert "━" in log.getvalue()
    assert "1/4 requests" in log.getvalue()


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
    }


def test_summary_tells_of_lines_that_are_not_what_they_seem() -> None:
    rows = dict(summary_rows(JobSummary(3, 1, STATS, num_other_model=2, num_cut=1)))
    assert (rows["  naming another model"], rows["  cut at the model's length"]) == ("2", "1")
    assert not [name for name in dict(summary_rows(JobSummary(3, 1, STATS))) if "another" in name or "cut" in name]


def test_summary_of_a_job_without_a_request() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(summary_table(JobSummary(0, 2, {})))
    assert list(summary_rows(JobSummary(0, 2, {}))) == [("lines answered", "0"), ("lines failed", "2")]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
