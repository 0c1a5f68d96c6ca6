"""What the driver does with parcels that do not come back, with a cluster in its own process."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from batchllm.integrations.ray_data import job as driver
from batchllm.integrations.ray_data import run_job_on_ray
from batchllm.integrations.ray_data.cluster import Replicas
from batchllm.integrations.ray_data.parts import PartFiles
from batchllm.integrations.ray_data.replica import Answer, JobReplica
from batchllm.jobs.line import BatchRequest
from batchllm.jobs.parts import part_paths
from batchllm.jobs.reading import TokenizedLine
from batchllm.jobs.run import JobInterrupted, JobSummary, OutOfTime
from tests.integrations.ray.conftest import ENGINE
from tests.integrations.ray.here import Died, HereReplicas
from tests.jobs.batch_lines import completion_line, read_records, write_lines


class CarefulReplica(JobReplica):
    """Does what a line's custom_id says once the lines before it are answered."""

    parcels: ClassVar[list[list[str]]] = []

    def answers(
        self, lines: list[TokenizedLine], on_step: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[BatchRequest, Answer]]:
        self.parcels.append([line.request.custom_id for line in lines])
        for line in lines:
            name = line.request.custom_id
            if name == "dies":
                raise Died
            if name == "raises":
                raise RuntimeError("logits are not finite")
            if name == "no disk":
                raise OSError("no space left on device")
            if name == "stops":
                raise KeyboardInterrupt
            if name == "sleeps":
                time.sleep(2)
            yield from super().answers([line], on_step)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def connected(*where: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(driver, "connected", connected)
    monkeypatch.setattr(driver, "JobReplica", CarefulReplica)
    monkeypatch.setattr(Replicas, "of", lambda number, *of_a_node: HereReplicas(number, 1, 0))
    monkeypatch.setattr(driver, "parcels_of", lambda job, *planned: one_parcel(job.num_lines))
    CarefulReplica.parcels.clear()


def one_parcel(num_lines: int) -> list[Any]:
    return [np.arange(num_lines)]


def run(directory: Path, model: Path, names: list[str], **options: Any) -> JobSummary:
    source = write_lines(directory / "in.jsonl", [completion_line(name, name * 9, max_tokens=2) for name in names])
    options = {"ray": "local", "replicas": 2, "log": lambda line: None, **ENGINE, **options}
    return run_job_on_ray(source, directory / "out", model, **options)


def answered(directory: Path) -> list[str]:
    return sorted(record["custom_id"] for path in part_paths(directory / "out") for record in read_records(path))


def errors(directory: Path) -> dict[str, str]:
    return {r["custom_id"]: r["error"]["message"] for r in read_records(directory / "out" / "errors.jsonl")}


def test_what_did_not_come_back_is_handed_out_in_halves_and_a_line_alone_is_an_error(
    model: Path, tmp_path: Path
) -> None:
    names = ["a", "b", "dies", "c", "d", "e", "f"]
    summary = run(tmp_path, model, names)
    assert (summary.num_answered, summary.num_failed) == (6, 1)
    assert answered(tmp_path) == ["a", "b", "c", "d", "e", "f"]
    assert errors(tmp_path) == {"dies": "the process that was to answer it ended 3 times"}
    first, *others = [p for at, p in enumerate(CarefulReplica.parcels) if p not in CarefulReplica.parcels[:at]]
    assert first == names
    assert others == [
        ["dies", "c", "d", "e", "f"],
        ["dies", "c", "d"],
        ["e", "f"],
        ["dies", "c"],
        ["d"],
        ["dies"],
        ["c"],
    ]


def test_an_exception_is_tried_without_and_its_text_is_the_error(model: Path, tmp_path: Path) -> None:
    summary = run(tmp_path, model, ["a", "raises", "b"])
    assert (summary.num_answered, summary.num_failed) == (2, 1)
    assert errors(tmp_path) == {"raises": "RuntimeError: logits are not finite"}
    assert CarefulReplica.parcels == [["a", "raises", "b"], ["raises"], ["b"]]


def test_a_full_disk_ends_the_job_and_the_answers_stay(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no space left on device; the answers so far are in .*out; --resume goes on"):
        run(tmp_path, model, ["a", "no disk", "b"])
    assert answered(tmp_path) == ["a"]


def test_an_interrupted_job_goes_on_with_what_is_left(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a", "stops", "b"]
    with pytest.raises(JobInterrupted, match=r"the answers so far are in .*out; --resume goes on"):
        run(tmp_path, model, names)
    monkeypatch.setattr(driver, "JobReplica", JobReplica)
    summary = run(tmp_path, model, names, resume=True)
    assert (summary.num_answered, summary.num_failed, summary.num_earlier) == (3, 0, 1)
    assert answered(tmp_path) == ["a", "b", "stops"]


def test_a_job_ends_by_its_time_limit_between_two_parcels(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "parcels_of", lambda job, *planned: [np.arange(2), np.arange(2, 3)])
    with pytest.raises(JobInterrupted, match=r"the answers so far are in .*out; --resume goes on") as stopped:
        run(tmp_path, model, ["a", "sleeps", "b"], time_limit_s=2)
    assert isinstance(stopped.value.__cause__, OutOfTime)
    assert answered(tmp_path) == ["a", "sleeps"]


def test_bad_lines_are_errors_of_the_driver_and_too_many_end_the_job(model: Path, tmp_path: Path) -> None:
    summary = run(tmp_path, model, ["a", "a", "b" * 100])
    assert (summary.num_answered, summary.num_failed) == (1, 2)
    assert answered(tmp_path) == ["a"]
    summary = run(tmp_path, model, ["b" * 100], overwrite=True)
    assert (summary.num_answered, summary.num_failed) == (0, 1)
    with pytest.raises(ValueError, match=r"2 of 3 lines failed .*, and at most 50.00% may fail"):
        run(tmp_path, model, ["a", "a", "b" * 100], overwrite=True, max_error_rate=0.5)


def test_errors_are_tried_again_where_that_is_asked_for(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, model, ["a", "raises"])
    monkeypatch.setattr(driver, "JobReplica", JobReplica)
    summary = run(tmp_path, model, ["a", "raises"], resume=True, retry_errors=True)
    assert (summary.num_answered, summary.num_failed, summary.num_earlier) == (2, 0, 1)
    assert errors(tmp_path) == {}


def test_an_output_that_is_written_over_holds_nothing_of_before(model: Path, tmp_path: Path) -> None:
    run(tmp_path, model, ["a", "b", "raises"])
    run(tmp_path, model, ["c"], overwrite=True)
    assert answered(tmp_path) == ["c"]
    assert errors(tmp_path) == {}


def test_a_directory_is_one_jobs_at_a_time(model: Path, tmp_path: Path) -> None:
    with (
        PartFiles(tmp_path / "out", replaces=False),
        pytest.raises(BlockingIOError, match=r"errors '.*errors.jsonl': another job is writing it"),
    ):
        run(tmp_path, model, ["a"])
    (tmp_path / "out" / "errors.jsonl").unlink()
    (tmp_path / "out").rmdir()
    (tmp_path / "out").touch()
    with pytest.raises(NotADirectoryError, match="is a file; a job on Ray writes a directory"):
        run(tmp_path, model, ["a"])


def test_a_table_is_refused_with_the_way_to_one(model: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [completion_line("a", "a", max_tokens=2)])
    with pytest.raises(ValueError, match="a job on Ray writes a directory, and `batchllm merge` a table of that"):
        run_job_on_ray(source, tmp_path / "out.parquet", model, ray="local", replicas=1)


def test_a_replica_that_does_not_start_ends_the_job_with_its_reason(model: Path, tmp_path: Path) -> None:
    copied = tmp_path / "model"
    shutil.copytree(model, copied, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ValueError, match=r"a replica did not start: .*safetensors.*--resume goes on"):
        run(tmp_path, copied, ["a"])
