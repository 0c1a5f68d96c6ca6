"""An interrupted job continues: nothing is lost, nothing is answered twice, and another job's files are refused."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchllm.jobs.files import SYNC_SECONDS, RecordFile
from batchllm.jobs.manifest import SAMPLES, differences, fingerprint_model, manifest_path, read_manifest
from batchllm.jobs.run import BatchFiles, JobInterrupted, JobSummary, OutOfTime, RunOptions, run_batch_file
from batchllm.outputs import RequestOutput
from tests.jobs.batch_lines import chat_line, completion_line, read_records, write_lines
from tests.jobs.fake_llm import FakeLLM

LINES = [
    completion_line("a"),
    b"not json",
    completion_line("b", ["one", "two"], n=2),
    completion_line("a", "the same again"),
    chat_line("c"),
    b"",
    completion_line("too long", "x" * 600),
    completion_line("d"),
]
ANSWERED, FAILED = {"a", "b", "c", "d"}, {2, 4, 7}


@pytest.fixture
def files(tmp_path: Path) -> BatchFiles:
    source = write_lines(tmp_path / "in.jsonl", LINES)
    return BatchFiles(source, tmp_path / "out.jsonl", tmp_path / "errors.jsonl", resume=True)


def run(files: BatchFiles, llm: FakeLLM | None = None, **options: Any) -> JobSummary:
    return run_batch_file(
        files, lambda: llm or FakeLLM(), RunOptions(**{"model_name": "m", "chat_max_tokens": 9, **options})
    )


def refuse_to_load() -> FakeLLM:
    raise AssertionError("loaded")


def check_finished(files: BatchFiles) -> None:
    assert files.errors
    ids = [record["custom_id"] for record in read_records(files.output)]
    assert sorted(ids) == sorted(ANSWERED)
    lines = [record["error"]["line"] for record in read_records(files.errors)]
    assert sorted(lines) == sorted(FAILED)


class Stopping(FakeLLM):
    """Ends with an error after some answers."""

    def __init__(self, num_answers: int, error: BaseException) -> None:
        super().__init__()
        self.num_answers, self.error = num_answers, error
        self.num_given = 0

    def generate_as_completed(self, *args: Any, **options: Any) -> Iterator[tuple[int, RequestOutput]]:
        for result in super().generate_as_completed(*args, **options):
            if self.num_given == self.num_answers:
                raise self.error
            self.num_given += 1
            yield result


def test_resuming_where_there_is_nothing_begins_the_job(files: BatchFiles) -> None:
    llm = FakeLLM()
    assert run(files, llm) == JobSummary(4, 3, llm.stats)
    check_finished(files)


@pytest.mark.parametrize(("num_answers", "prompts_left"), [(1, 4), (2, 3), (3, 3), (4, 1)])
def test_a_job_goes_on_wherever_it_was_cut_off(files: BatchFiles, num_answers: int, prompts_left: int) -> None:
    with pytest.raises(JobInterrupted, match=r"the answers so far are in .*; --resume goes on"):
        run(files, Stopping(num_answers, KeyboardInterrupt()))
    before = files.output.read_bytes()
    llm = FakeLLM()
    summary = run(files, llm)
    assert files.output.read_bytes().startswith(before)
    assert len(llm.params) == prompts_left  # of the third answer's line the other prompt was not answered
    assert (summary.num_answered, summary.num_failed, summary.num_earlier) == (4, 3, 3 + before.count(b"\n"))
    check_finished(files)


def test_a_finished_job_is_only_reported(files: BatchFiles) -> None:
    run(files)
    before = [path.read_bytes() for path in (files.output, files.errors, manifest_path(files.output)) if path]
    summary = run_batch_file(files, refuse_to_load, RunOptions(model_name="m", chat_max_tokens=9))
    assert summary == JobSummary(4, 3, {}, num_earlier=7)
    assert [path.read_bytes() for path in (files.output, files.errors, manifest_path(files.output)) if path] == before


@pytest.mark.parametrize("name", ["output", "errors"])
def test_what_a_crash_has_torn_is_cut_and_answered_again(files: BatchFiles, name: str) -> None:
    run(files)
    path: Path = getattr(files, name)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    sizes = (
        range(first + 1, len(whole), 7) if name == "output" else range(whole.rindex(b"\n", 0, -1) + 1, len(whole), 3)
    )
    for size in sizes:
        path.write_bytes(whole[:size])
        run(files)
        check_finished(files)
        assert path.read_bytes().startswith(whole[: whole.rindex(b"\n", 0, size) + 1])


def test_a_hole_that_was_never_written_is_torn_too(files: BatchFiles) -> None:
    run(files)
    whole = files.output.read_bytes()
    begin = whole.index(b"\n") + 30
    files.output.write_bytes(whole[:begin] + bytes(40) + whole[begin + 40 :])
    run(files)
    check_finished(files)


def test_what_is_not_the_jobs_is_no_tear(files: BatchFiles) -> None:
    run(files)
    whole = files.output.read_bytes()
    for foreign in (b"{}\n", b"my notes", b'{"id":"batch_req_0000000000000000' + b"0" * 16 + b'"}\n'):
        files.output.write_bytes(whole + foreign)
        with pytest.raises(
            ValueError, match=r"output '.*out.jsonl': line 5 is not a record of the job in its manifest"
        ):
            run_batch_file(files, refuse_to_load, RunOptions(model_name="m", chat_max_tokens=9))
        assert files.output.read_bytes() == whole + foreign
    files.output.write_bytes(whole + whole.splitlines(keepends=True)[0])
    with pytest.raises(ValueError, match="expected one record per line, got 2 of line"):
        run(files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chat_max_tokens": 8}, r"max_tokens is 9 there and 8 here$"),
        ({"seed": 1, "model_name": "other"}, r"seed is 0 there and 1 here; model is m there and other here$"),
        ({"answer_options": {"dtype": "float32"}}, r"dtype is nothing there and float32 here$"),
    ],
)
def test_another_job_is_refused_by_what_differs(files: BatchFiles, change: dict[str, Any], message: str) -> None:
    run(files)
    options = RunOptions(**{"model_name": "m", "chat_max_tokens": 9, **change})
    with pytest.raises(ValueError, match=r"output '.*out.jsonl': belongs to another job: " + message):
        run_batch_file(files, refuse_to_load, options)


def test_another_input_is_another_job_whatever_its_name(files: BatchFiles) -> None:
    run(files)
    data = files.input.read_bytes()
    files.input.write_bytes(data.replace(b"Hello", b"Hallo", 1))
    with pytest.raises(ValueError, match=r"another job: input is .* bytes, SHA-256 .* there and .* here"):
        run(files)
    moved = files.input.with_name("moved.jsonl")
    moved.write_bytes(data)
    assert run(replace(files, input=moved)).num_earlier == 7


def test_without_a_manifest_nothing_is_resumed(files: BatchFiles) -> None:
    run(files)
    path = manifest_path(files.output)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"manifest '.*out.jsonl.manifest.json': Input data was truncated"):
        run(files)
    path.unlink()
    with pytest.raises(ValueError, match=r"there is no 'out.jsonl.manifest.json' that says which job it belongs to"):
        run(files)


def test_errors_that_keep_a_custom_id_from_coming_twice_must_be_there(files: BatchFiles) -> None:
    assert files.errors
    run(files)
    files.errors.write_bytes(b"")
    with pytest.raises(ValueError, match=r"errors '.*': expected 1 errors for repeated custom_ids, got 0"):
        run(files)


def test_lines_with_an_error_are_tried_again_if_asked_for(files: BatchFiles) -> None:
    class Bigger(FakeLLM):
        max_model_len = 1000

    run(files)
    assert files.errors
    summary = run(files, Bigger(), retry_errors=True)
    assert (summary.num_answered, summary.num_failed, summary.num_earlier) == (5, 2, 5)
    assert [record["error"]["line"] for record in read_records(files.errors)] == [4, 2]
    assert len(read_records(files.output)) == 5
    assert run(files) == JobSummary(5, 2, {}, num_earlier=7)


def test_a_crash_between_old_files_and_a_new_manifest_costs_nothing(files: BatchFiles) -> None:
    run(files)
    for path in (files.output, files.errors):
        assert path
        path.write_bytes(b"")
    run(files, chat_max_tokens=8)
    check_finished(files)


def test_only_files_are_resumed(files: BatchFiles) -> None:
    for wrong in (replace(files, output=Path(os.devnull)), replace(files, errors=None)):
        with pytest.raises(ValueError, match="only files are resumed"):
            run(wrong)
    with pytest.raises(ValueError, match="resumed or overwritten, not both"):
        run(replace(files, overwrite=True))


def test_a_running_job_is_not_resumed(files: BatchFiles) -> None:
    run(files)
    with RecordFile("output", files.output, overwrite=True), pytest.raises(BlockingIOError, match="another job"):
        run(files)


def test_too_many_errors_end_a_job_before_anything_is_written(files: BatchFiles) -> None:
    message = r"3 of 7 lines failed \(the first here: line 2: .*\), and at most 40.00% may fail"
    with pytest.raises(ValueError, match=message):
        run(files, max_error_rate=0.4)
    assert not files.output.exists()
    assert run(files, max_error_rate=0.45).num_failed == 3


def test_failing_fast_reads_no_further_than_the_first_error(files: BatchFiles) -> None:
    with pytest.raises(ValueError, match=r"a line failed \(the first here: line 2: .*\), and none may fail"):
        run(files, max_error_rate=0.0)


def test_errors_of_the_engine_count_too(files: BatchFiles) -> None:
    class Undecodable(FakeLLM):
        def generate_as_completed(self, *args: Any, **options: Any) -> Iterator[tuple[int, RequestOutput]]:
            for index, output in super().generate_as_completed(*args, **options):
                if index < 2:
                    output.outputs[-1].finish_reason, output.outputs[-1].stop_reason = "error", "it panicked"
                yield index, output

    with pytest.raises(
        ValueError, match=r"4 of 7 lines failed, and at most 50.00% may fail; the answers so far are in"
    ):
        run(files, Undecodable(), max_error_rate=0.5)
    assert run(files, retry_errors=True).num_failed == 3
    check_finished(files)


def test_out_of_time_a_job_ends_between_two_steps_and_goes_on(files: BatchFiles) -> None:
    with pytest.raises(OutOfTime):
        run(files, time_limit_s=0)
    assert not files.output.exists()
    llm = FakeLLM()
    options = RunOptions(model_name="m", chat_max_tokens=9, time_limit_s=0.2)
    llm.after_each = lambda: time.sleep(0.3)
    with pytest.raises(JobInterrupted) as stopped:
        run_batch_file(files, lambda: llm, options)
    assert isinstance(stopped.value.__cause__, OutOfTime)
    assert len(read_records(files.output)) == 1
    run(files)
    check_finished(files)


def test_errors_of_reading_are_on_disk_before_the_first_answer(
    files: BatchFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    fsync, write = os.fsync, os.write

    def name_of(file: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{file}")).name

    def synced(file: int) -> None:
        events.append(("sync", name_of(file)))
        fsync(file)

    def written(file: int, data: memoryview) -> int:
        events.append(("write", name_of(file)))
        return write(file, data)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "write", written)
    run(files)
    first_answer = events.index(("write", "out.jsonl"))
    last_error = max(at for at, event in enumerate(events) if event == ("write", "errors.jsonl"))
    assert last_error < events.index(("sync", "errors.jsonl"), last_error) < first_answer
    manifest = next(at for at, (kind, name) in enumerate(events) if kind == "sync" and "manifest" in name)
    assert events[manifest + 1] == ("sync", files.output.parent.name)  # that the manifest is there is on disk, too
    assert manifest < first_answer


def test_answers_are_on_disk_a_second_later(files: BatchFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr("time.monotonic", lambda: clock)
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(clock), fsync(file)))
    with RecordFile("output", files.output, overwrite=False) as file:
        for _ in range(10):
            clock += SYNC_SECONDS / 4
            file.write(b"record\n")
        assert synced == [0.25, 1.25, 2.25]
        clock = 5.0
        file.sync_if_due()
        assert synced[-1] == 5.0


def test_a_models_files_are_known_by_their_content(tmp_path: Path) -> None:
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    config.write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 18], "data_offsets": [0, 1 << 20]}}).encode()
    data = bytearray(len(header).to_bytes(8, "little") + header + bytes(1 << 20))
    weights.write_bytes(data)
    before = fingerprint_model(tmp_path)
    assert fingerprint_model(tmp_path) == before
    data[-(len(data) // SAMPLES) * 5 :] = b"1" * ((len(data) // SAMPLES) * 5)  # as another checkpoint's would be
    weights.write_bytes(data)
    config.write_text("[]")
    found = differences(before, fingerprint_model(tmp_path))
    assert [text.split(" is ")[0] for text in found] == ["model config.json", "model model.safetensors"]


def test_the_manifest_says_what_a_person_asks(files: BatchFiles) -> None:
    run(files)
    manifest = read_manifest(files.output)
    assert manifest
    assert (manifest.num_lines, manifest.num_duplicates) == (7, 1)
    assert {"batchllm", "input", "max_tokens", "seed", "model"} <= manifest.fingerprint.keys()
    assert all(manifest.job_id in record["id"] for record in read_records(files.output))
