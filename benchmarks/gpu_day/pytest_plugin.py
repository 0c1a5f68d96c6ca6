"""Tests on a GPU: a process whose CUDA context is lost ends at once, and pytest-xdist starts another, so that only the
test at fault fails; failures are lines of the results as they come.

pytest -p benchmarks.gpu_day.pytest_plugin --suite NAME -n 12 ...
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from benchmarks.gpu_day.device import CONTEXT_LOST, context_is_lost
from benchmarks.gpu_day.results import record


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--suite", default="all", help="what the lines of the results call these tests")


def is_worker(config: pytest.Config) -> bool:
    """Of pytest-xdist; without it the one process is no worker."""
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    if not is_worker(config):
        config.pluginmanager.register(Recorder(config.getoption("--suite")))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    if is_worker(item.config) and context_is_lost():
        os._exit(CONTEXT_LOST)


class Recorder:
    def __init__(self, suite: str) -> None:
        self.suite = suite
        self.begin_s = time.perf_counter()
        self.outcomes: dict[str, str] = {}  # of each test; "failed" stays

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test, seen = report.nodeid, self.outcomes.get(report.nodeid)
        if report.failed and seen != "failed":
            record("failed test", suite=self.suite, test=test, message=str(report.longrepr)[-700:])
        if report.failed or (seen is None and (report.when == "call" or report.skipped)):
            self.outcomes[test] = report.outcome

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self) -> Iterator[None]:
        yield
        counts = Counter(self.outcomes.values())
        record(
            "tests",
            suite=self.suite,
            seconds=time.perf_counter() - self.begin_s,
            **{outcome: counts[outcome] for outcome in ("passed", "failed", "skipped")},
        )
