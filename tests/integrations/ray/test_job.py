"""A file of requests on a Ray cluster: every line once, whatever dies, with the answers and the work of one machine."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ray.cluster_utils import Cluster
from typer.testing import CliRunner

from batchllm import run_job
from batchllm.cli import app
from batchllm.integrations.ray_data import job as driver
from batchllm.integrations.ray_data.replica import Answer, JobReplica
from batchllm.jobs.line import BatchRequest
from batchllm.jobs.parts import part_paths
from batchllm.jobs.reading import TokenizedLine
from batchllm.jobs.run import JobSummary
from tests.integrations.ray.conftest import ENGINE, NODE, NUM_LINES, shuffled_questions
from tests.integrations.ray.jobs import answers, records, run
from tests.jobs.batch_lines import completion_line, read_records, write_lines


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
    """Kills the first process that has some but not all answers of a part."""

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
            if "JobReplica" in process.name() and any(file.path == str(path) for file in process.open_files()):
                return process.pid
        except psutil.Error:
            pass
    return None


@pytest.fixture(scope="module")
def disturbed(
    cluster: None, source: Path, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, JobSummary]:
    """A job with a replica that was killed while it answered a parcel."""
    directory = tmp_path_factory.mktemp("disturbed") / "out"
    killer = Killer(directory)
    killer.start()
    summary = run(source, directory, model)
    assert killer.part is not None
    assert killer.part.read_bytes().startswith(killer.content)  # of what was answered, nothing was answered again
    return directory, summary


def test_a_killed_replica_loses_nothing_and_answers_are_those_of_one_machine(
    disturbed: tuple[Path, JobSummary], lines: list[dict[str, Any]], alone: tuple[Any, Any]
) -> None:
    directory, summary = disturbed
    one_machine, stats = alone
    assert (summary.num_answered, summary.num_failed, summary.num_earlier) == (NUM_LINES, 0, 0)
    assert answers(records(directory)) == one_machine
    assert (directory / "errors.jsonl").read_bytes() == b""
    planned = planned_tokens(directory, lines)
    assert summary.stats["computed_prompt_tokens"] <= 1.05 * planned
    assert planned <= 1.5 * stats["computed_prompt_tokens"]


def test_a_lost_node_loses_nothing_and_is_not_waited_for(
    cluster: Cluster, source: Path, model: Path, tmp_path: Path, alone: tuple[Any, Any]
) -> None:
    """Where the replicas fill the cluster, so that there is no room for another."""
    out = tmp_path / "out"
    [second] = cluster.worker_nodes

    def remove() -> None:
        while sum(path.read_bytes().count(b"\n") >= 5 for path in part_paths(out)) < 2:  # both are at work
            time.sleep(0.002)
        cluster.remove_node(second, allow_graceful=False)

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        summary = run(source, out, model, num_threads=2)
        assert second not in cluster.worker_nodes
    finally:
        remover.join()
        cluster.add_node(**NODE)
    assert (summary.num_answered, summary.num_failed) == (NUM_LINES, 0)
    assert answers(records(out)) == alone[0]


def test_the_same_pipeline_with_shuffled_rows_computes_twice_as_much_and_takes_more_time(
    cluster: None, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shuffled_questions(384, 2)
    source = write_lines(tmp_path / "in.jsonl", lines)
    ours = run(source, tmp_path / "planned", model)

    def as_submitted(job: Any, *planned: Any) -> list[Any]:
        parcels = parcels_of(job, *planned)
        ends = np.cumsum([len(parcel) for parcel in parcels])
        return [np.arange(end - len(parcel), end) for parcel, end in zip(parcels, ends, strict=True)]

    parcels_of = driver.parcels_of
    monkeypatch.setattr(driver, "parcels_of", as_submitted)
    shuffled = run(source, tmp_path / "shuffled", model)
    assert answers(records(tmp_path / "shuffled")) == answers(records(tmp_path / "planned"))
    assert shuffled.stats["computed_prompt_tokens"] >= 2 * planned_tokens(tmp_path / "planned", lines)
    assert shuffled.stats["cpu_s"] > ours.stats["cpu_s"]


def test_the_command_goes_on_with_a_job_that_was_cut_off(
    disturbed: tuple[Path, JobSummary], source: Path, model: Path, tmp_path: Path
) -> None:
    directory, _ = disturbed
    whole = answers(records(directory))
    out = tmp_path / "out"
    shutil.copytree(directory, out)
    first, second, *others = part_paths(out)
    first.write_bytes(first.read_bytes()[:-40])  # torn
    second.write_bytes(second.read_bytes() + first.read_bytes().splitlines(keepends=True)[0])  # a line stands twice
    for path in others:
        path.unlink()
    earlier = first.read_bytes().count(b"\n") + second.read_bytes().count(b"\n") - 1
    summary = tmp_path / "summary.json"
    command = ["run", str(source), "-o", str(out), "--model", str(model), "--ray", "local", "--replicas", "2"]
    page, ordered = tmp_path / "page.html", tmp_path / "ordered.jsonl"
    options = ["--dtype", "float32", "--kv-cache-tokens", "16384", "--json-summary", str(summary)]
    options += ["--report", str(page)]
    refused = CliRunner().invoke(app, [*command, *options])
    assert refused.exit_code == 1
    assert "holds answers; --overwrite replaces them, --resume continues their job" in refused.output
    assert CliRunner().invoke(app, [*command, *options, "--resume"]).exit_code == 0
    figures = json.loads(summary.read_text())
    assert (figures["num_answered"], figures["num_earlier"]) == (NUM_LINES, earlier)
    assert answers(records(out)) == whole
    assert f"<dt>lines answered</dt><dd>{NUM_LINES}</dd>" in page.read_text()
    assert CliRunner().invoke(app, ["merge", str(source), str(out), "-o", str(ordered), "--ordered"]).exit_code == 0
    names = [json.loads(line)["custom_id"] for line in source.read_text().splitlines()]
    assert [record["custom_id"] for record in read_records(ordered)] == names
    finished = CliRunner().invoke(app, [*command, *options, "--resume"])  # no replica is started
    assert finished.exit_code == 0
    assert "answered or failed in earlier runs" in finished.output
    other = CliRunner().invoke(app, [*command, *options, "--resume", "--seed", "1"])
    assert other.exit_code == 1
    assert "belongs to another job: seed is 0 there and 1 here" in other.output.replace("\n", " ")


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
