"""A file of requests on a Ray cluster: every line once, whatever dies, with the answers and the work of one machine."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from batchllm import run_job
from batchllm.integrations.ray_data import job as driver
from batchllm.integrations.ray_data import run_job_on_ray
from batchllm.integrations.ray_data.parts import part_paths
from batchllm.integrations.ray_data.replica import Answer, JobReplica
from batchllm.jobs.line import BatchRequest
from batchllm.jobs.reading import TokenizedLine
from batchllm.jobs.run import JobSummary
from tests.integrations.ray.conftest import ENGINE, NUM_LINES
from tests.jobs.batch_lines import completion_line, read_records, write_lines


def records(directory: Path) -> list[dict[str, Any]]:
    return [record for path in part_paths(directory) for record in read_records(path)]


def answers(found: list[dict[str, Any]]) -> dict[str, Any]:
    """By custom_id, each once."""
    by_id = {record["custom_id"]: record["response"]["body"]["choices"] for record in found}
    assert len(by_id) == len(found)
    return by_id


def run(source: Path, directory: Path, model: Path, **options: Any) -> JobSummary:
    return run_job_on_ray(
        source, directory, model, **{"ray": "local", "replicas": 2, "log": lambda line: None, **ENGINE, **options}
    )


@pytest.fixture(scope="module")
def alone(source: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What one machine answers, and its figures."""
    output = tmp_path_factory.mktemp("alone") / "out.jsonl"
    summary = run_job(source, output, model, log=lambda line: None, **ENGINE)
    assert summary.num_answered == NUM_LINES
    return answers(read_records(output)), summary.stats


def planned_tokens(directory: Path, lines: list[dict[str, Any]]) -> int:
    """Prompt tokens of the parts if each computes a prefix once: those of one machine, and the paths paid again."""
    prompts = {line["custom_id"]: b"\1" + line["body"]["prompt"].encode() for line in lines}
    total = 0
    for path in part_paths(directory):
        mine = [prompts[record["custom_id"]] for record in read_records(path)]
        total += len({ids[:end] for ids in mine for end in range(1, len(ids))}) + len(mine)
    return total


class Killer(threading.Thread):
    """Kills the first process that has some answers, and not yet all, of a part."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self.directory = directory
        self.part: Path | None = None
        self.content = b""

    def run(self) -> None:
        while self.part is None:
            for path in part_paths(self.directory):
                if path.read_bytes().count(b"\n") >= 5 and (pid := writer_of(path)):
                    os.kill(pid, 9)
                    self.part, self.content = path, path.read_bytes()
                    return
            time.sleep(0.002)


def writer_of(path: Path) -> int | None:
    for process in psutil.process_iter():
        try:
            if "MapWorker" in process.name() and any(file.path == str(path) for file in process.open_files()):
                return process.pid
        except psutil.Error:
            pass
    return None


@pytest.mark.usefixtures("cluster")
def test_a_killed_replica_loses_nothing_and_costs_what_was_not_yet_answered(
    source: Path, lines: list[dict[str, Any]], model: Path, alone: tuple[Any, Any], tmp_path: Path
) -> None:
    one_machine, stats = alone
    killer = Killer(tmp_path / "out")
    killer.start()
    summary = run(source, tmp_path / "out", model)
    assert killer.part is not None
    assert killer.part.read_bytes().startswith(killer.content)
    assert (summary.num_answered, summary.num_failed) == (NUM_LINES, 0)
    assert answers(records(tmp_path / "out")) == one_machine
    assert read_records(tmp_path / "out" / "errors.jsonl") == []
    planned = planned_tokens(tmp_path / "out", lines)
    assert summary.stats["computed_prompt_tokens"] <= 1.05 * planned
    assert stats["computed_prompt_tokens"] <= 1.05 * planned
    assert planned <= 1.5 * stats["computed_prompt_tokens"]

    begun = time.perf_counter()
    resumed = run(source, tmp_path / "out", model, resume=True)
    assert time.perf_counter() - begun < 10  # no replica was started
    assert (resumed.num_answered, resumed.num_earlier) == (NUM_LINES, NUM_LINES)


@pytest.mark.usefixtures("cluster")
def test_the_same_pipeline_with_shuffled_rows_computes_twice_as_much(
    source: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = run(source, tmp_path / "planned", model)

    def as_submitted(job: Any, *planned: Any) -> list[Any]:
        parcels = parcels_of(job, *planned)
        ends = [sum(map(len, parcels[: number + 1])) for number in range(len(parcels))]
        return [np.arange(end - len(parcel), end) for parcel, end in zip(parcels, ends, strict=True)]

    parcels_of = driver.parcels_of
    monkeypatch.setattr(driver, "parcels_of", as_submitted)
    shuffled = run(source, tmp_path / "shuffled", model)
    assert answers(records(tmp_path / "planned")) == answers(records(tmp_path / "shuffled"))
    assert shuffled.stats["computed_prompt_tokens"] >= 2 * ours.stats["computed_prompt_tokens"]
    assert shuffled.stats["seconds"]["forward"] > ours.stats["seconds"]["forward"]


class Deadly(JobReplica):
    """Ends its process where a line is to be answered."""

    def answers(
        self, lines: list[TokenizedLine], on_step: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[BatchRequest, Answer]]:
        for request, answer in super().answers(lines, on_step):
            if request.custom_id == "deadly":
                os._exit(1)
            yield request, answer


@pytest.mark.usefixtures("cluster")
def test_a_line_that_ends_its_process_is_an_error_after_three_tries(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "JobReplica", Deadly)
    source = write_lines(
        tmp_path / "in.jsonl", [completion_line(name, name * 50, max_tokens=2) for name in ("a", "deadly", "b", "c")]
    )
    summary = run(source, tmp_path / "out", model)
    assert (summary.num_answered, summary.num_failed) == (3, 1)
    assert set(answers(records(tmp_path / "out"))) == {"a", "b", "c"}
    [error] = read_records(tmp_path / "out" / "errors.jsonl")
    assert (error["custom_id"], error["error"]["line"], error["error"]["code"]) == ("deadly", 2, "no_answer")
    assert error["error"]["message"] == "the process that was to answer it ended 3 times"
