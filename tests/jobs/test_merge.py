"""Shards that ran separately become the job that a single run would have made."""

import fcntl
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from batchllm.cli import app
from batchllm.jobs.manifest import manifest_path
from batchllm.jobs.merge import MergedJob, merge
from batchllm.jobs.parts import errors_path, part_path
from batchllm.jobs.run import BatchFiles, JobSummary, RunOptions, run_batch_file
from batchllm.jobs.sinks import RecordFiles
from tests.jobs.batch_lines import chat_line, completion_line, read_records, write_lines
from tests.jobs.fake_llm import FakeLLM

LINES: list[dict[str, Any] | bytes] = [
    completion_line("a", "first"),
    b"not json",
    completion_line("b", ["one", "two"], n=2),
    completion_line("a", "the same again"),
    chat_line("c", "Gr\u00fc\u00dfe"),
    completion_line("too long", "x" * 600),
    completion_line("d", "last"),
]
GOOD = [0, 2, 4, 5, 6]  # what a plan would put into shards


def run(source: Path, output: Path, llm: FakeLLM | None = None, *, resume: bool = False, **options: Any) -> JobSummary:
    files = BatchFiles(source, output, output.with_suffix(".errors.jsonl"), resume=resume)
    given = RunOptions(**{"model_name": "m", "chat_max_tokens": 9, **options})
    return run_batch_file(files, lambda: llm or FakeLLM(), given)


def answer_shards(folder: Path, shards: list[list[int]], **options: Any) -> list[Path]:
    outputs = []
    for number, lines in enumerate(shards):
        source = write_lines(folder / f"shard{number}.jsonl", [LINES[line] for line in lines])
        outputs.append(folder / f"shard{number}.answers.jsonl")
        run(source, outputs[-1], **options)
    return outputs


def files_at(output: Path, *, ordered: bool = False) -> RecordFiles:
    return RecordFiles(output, output.with_suffix(".errors.jsonl"), ordered)


def without_ids(records: list[dict[str, Any]]) -> list[Any]:
    """What two runs have in common: all but the job's own number and the time."""
    found = []
    for record in records:
        line = record["id"][-16:]
        body = (record["response"] or {"body": {}})["body"]
        body.pop("created", None)
        found.append((line, json.dumps(record).replace(record["id"].removeprefix("batch_req_"), "ID")))
    return sorted(found)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", LINES)


@pytest.mark.parametrize("cut", [[[0, 2], [4, 5, 6]], [[6], [5], [4], [2], [0]], [list(range(len(LINES)))]], ids=str)
def test_merged_shards_are_what_one_run_makes(tmp_path: Path, whole: Path, cut: list[list[int]]) -> None:
    run(whole, tmp_path / "one.jsonl")
    shards = answer_shards(tmp_path, cut)
    assert merge(whole, shards, files_at(tmp_path / "out.jsonl"), overwrite=False) == MergedJob(4, 3, 0)
    for suffix in (".jsonl", ".errors.jsonl"):
        made, expected = (read_records((tmp_path / name).with_suffix(suffix)) for name in ("out", "one"))
        assert without_ids(made) == without_ids(expected)


def test_the_job_knows_itself_again(tmp_path: Path, whole: Path) -> None:
    merge(whole, answer_shards(tmp_path, [GOOD[:2], GOOD[2:]]), files_at(tmp_path / "out.jsonl"), overwrite=False)

    def refuse_to_load() -> FakeLLM:
        raise AssertionError("loaded")

    files = BatchFiles(whole, tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl", resume=True)
    options = RunOptions(model_name="m", chat_max_tokens=9)
    summary = run_batch_file(files, refuse_to_load, options)
    assert (summary.num_answered, summary.num_failed, summary.num_earlier) == (4, 3, 7)
    with pytest.raises(ValueError, match="belongs to another job: seed is 0 there and 1 here"):
        run_batch_file(files, refuse_to_load, replace(options, seed=1))


@pytest.mark.parametrize("ordered", [False, True])
def test_what_is_open_is_answered_by_a_resume(tmp_path: Path, whole: Path, ordered: bool) -> None:
    shards = answer_shards(tmp_path, [[4], [0]])
    output = tmp_path / "out.jsonl"
    assert merge(whole, shards, files_at(output, ordered=ordered), overwrite=False) == MergedJob(2, 2, 3)
    assert output.exists() != ordered  # the answers are in the journal
    llm = FakeLLM()
    files = BatchFiles(whole, output, tmp_path / "out.errors.jsonl", resume=True, ordered=ordered)
    run_batch_file(files, lambda: llm, RunOptions(model_name="m", chat_max_tokens=9))
    ids = [record["custom_id"] for record in read_records(output)]
    assert ids == ["a", "b", "c", "d"] if ordered else sorted(ids) == ["a", "b", "c", "d"]
    assert len(llm.params) == 3  # b's two prompts and d's


def test_the_order_of_the_lines(tmp_path: Path, whole: Path) -> None:
    merge(
        whole,
        answer_shards(tmp_path, [[6, 4], [2, 5, 0]]),
        files_at(tmp_path / "o.jsonl", ordered=True),
        overwrite=False,
    )
    assert [record["custom_id"] for record in read_records(tmp_path / "o.jsonl")] == ["a", "b", "c", "d"]


def test_parts_of_a_cluster_are_merged_as_a_shard_is(tmp_path: Path, whole: Path) -> None:
    run(whole, tmp_path / "one.jsonl")
    directory = tmp_path / "parts"
    directory.mkdir()
    answers = (tmp_path / "one.jsonl").read_bytes().splitlines(keepends=True)
    for number, records in enumerate((answers[2:], answers[:2])):
        part_path(directory, number).write_bytes(b"".join(records))
    shutil.copy(tmp_path / "one.errors.jsonl", errors_path(directory))
    shutil.copy(tmp_path / "one.jsonl.manifest.json", manifest_path(directory))
    output = files_at(tmp_path / "out.jsonl", ordered=True)
    with pytest.raises(ValueError, match=r"output '.*part-000001.jsonl': is the shard file"):
        merge(whole, [directory], files_at(part_path(directory, 1)), overwrite=True)
    with errors_path(directory).open() as errors:  # as the driver of a job that runs has it
        fcntl.flock(errors, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match=r"shard '.*parts': another job is writing it"):
            merge(whole, [directory], output, overwrite=False)
    assert merge(whole, [directory], output, overwrite=False) == MergedJob(4, 3, 0)
    assert [record["custom_id"] for record in read_records(output.output)] == ["a", "b", "c", "d"]
    assert without_ids(read_records(output.output)) == without_ids(read_records(tmp_path / "one.jsonl"))


def test_a_torn_end_is_open(tmp_path: Path, whole: Path) -> None:
    (shard,) = answer_shards(tmp_path, [GOOD])
    shard.write_bytes(shard.read_bytes()[:-20])
    assert merge(whole, [shard], files_at(tmp_path / "out.jsonl"), overwrite=False) == MergedJob(3, 3, 1)


def test_many_lines_cut_at_random(tmp_path: Path) -> None:
    rng = random.Random(4)
    lines: list[dict[str, Any] | bytes] = [completion_line(f"id {i}", f"prompt {i}") for i in range(300)]
    whole = write_lines(tmp_path / "in.jsonl", lines)
    shards = []
    owner = [rng.randrange(7) for _ in lines]
    for number in range(7):
        part = [line for line, at in zip(lines, owner, strict=True) if at == number]
        rng.shuffle(part)
        source = write_lines(tmp_path / f"s{number}.jsonl", part)
        shards.append(tmp_path / f"s{number}.answers.jsonl")
        run(source, shards[-1])
    assert merge(whole, shards, files_at(tmp_path / "out.jsonl"), overwrite=False) == MergedJob(300, 0, 0)
    for record in read_records(tmp_path / "out.jsonl"):
        assert record["custom_id"] == f"id {int(record['id'][-16:], 16) - 1}"


def refused(tmp_path: Path, whole: Path, shards: list[Path], message: str, error: type[Exception] = ValueError) -> None:
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(error, match=message):
        merge(whole, shards, files_at(tmp_path / "out.jsonl"), overwrite=False)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_shards_of_two_jobs_are_refused(tmp_path: Path, whole: Path) -> None:
    one = answer_shards(tmp_path, [[0]])
    (tmp_path / "b").mkdir()
    other = answer_shards(tmp_path / "b", [[2]], seed=5)
    with pytest.raises(ValueError, match="belong to two jobs: seed is 0 there and 5 here"):
        merge(whole, one + other, files_at(tmp_path / "out.jsonl"), overwrite=False)


def test_a_line_of_two_shards_is_refused(tmp_path: Path, whole: Path) -> None:
    shards = answer_shards(tmp_path, [[0, 2], [2, 4]])
    refused(tmp_path, whole, shards, "both have line 3 of the input, custom_id 'b'")


def test_a_line_of_another_input_is_refused(tmp_path: Path, whole: Path) -> None:
    shards = answer_shards(tmp_path, [[0]])
    other = write_lines(tmp_path / "other.jsonl", [completion_line("z")])
    refused(tmp_path, other, shards, "custom_id 'a' is not in the input")


def test_what_is_no_shard_is_refused(tmp_path: Path, whole: Path) -> None:
    (shard,) = answer_shards(tmp_path, [[0]])
    (tmp_path / "shard0.answers.jsonl.manifest.json").unlink()
    refused(tmp_path, whole, [shard], "there is no 'shard0.answers.jsonl.manifest.json' beside it")
    refused(tmp_path, whole, [tmp_path / "nowhere.jsonl"], "nowhere.jsonl", FileNotFoundError)


def test_a_shard_that_is_being_written_is_refused(tmp_path: Path, whole: Path) -> None:
    (shard,) = answer_shards(tmp_path, [[0]])
    with shard.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(tmp_path, whole, [shard], "another job is writing it", BlockingIOError)


def test_a_shard_is_not_replaced_by_the_whole(tmp_path: Path, whole: Path) -> None:
    (shard,) = answer_shards(tmp_path, [[0]])
    with pytest.raises(ValueError, match="is the shard file"):
        merge(whole, [shard], files_at(shard), overwrite=True)


def test_the_command_says_how_many_lines_have_what(tmp_path: Path, whole: Path) -> None:
    shards = answer_shards(tmp_path, [[0, 2], [4]])
    arguments = ["merge", whole, *shards, "-o", tmp_path / "out.jsonl"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 3
    assert result.stderr.strip() == "3 lines answered, 2 failed, 2 open"
    again = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert again.exit_code == 1
    assert "exists and is not empty; --overwrite replaces it" in again.stderr
