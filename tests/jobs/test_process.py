"""The command as a process: its streams, its signals, and two at the same time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.jobs.batch_lines import completion_line, read_records, write_lines

COMMAND = [sys.executable, "-m", "tests.jobs.fake_command"]
ROOT = Path(__file__).resolve().parents[2]
NUM_LINES = 20


@pytest.fixture
def in_jsonl(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", [completion_line(str(i)) for i in range(NUM_LINES)])


def start(*args: object, seconds: float = 0, load_seconds: float = 0) -> subprocess.Popen[str]:
    environment = {"FAKE_SECONDS": str(seconds), "FAKE_LOAD_SECONDS": str(load_seconds), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*COMMAND, *(str(arg) for arg in args)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a shell ignore SIGINT, and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def run(*args: object) -> tuple[int, str, str]:
    process = start(*args)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def shell(command: str, folder: Path) -> tuple[int, str, str]:
    """With `batchllm` as a name for the command."""
    script = f'batchllm() {{ (cd {ROOT} && {" ".join(COMMAND)} "$@"); }}; D={folder}; {command}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("signal_number", "word", "status"), [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143)]
)
def test_a_stopped_job_keeps_its_answers_and_says_where(
    in_jsonl: Path, signal_number: signal.Signals, word: str, status: int
) -> None:
    output = in_jsonl.with_name("out.jsonl")
    process = start("run", in_jsonl, "-o", output, "--model", "m", seconds=0.2)
    wait_for_answer(output)
    process.send_signal(signal_number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert err.endswith(f"batchllm: {word}; the answers so far are in {output}; --resume goes on\n")
    assert 0 < len(read_records(output)) < NUM_LINES


def test_a_job_stopped_while_it_loads_says_that_nothing_was_written(in_jsonl: Path) -> None:
    output = in_jsonl.with_name("out.jsonl")
    output.write_text("old answers")
    process = start("run", in_jsonl, "-o", output, "--model", "m", "--overwrite", load_seconds=60)
    assert process.stderr
    assert process.stderr.readline() == "loading m\n"
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.endswith("batchllm: terminated; nothing was written\n")
    assert output.read_text() == "old answers"


def wait_for_answer(output: Path) -> None:
    for _ in range(600):
        if output.exists() and output.stat().st_size:
            return
        time.sleep(0.05)
    raise AssertionError("no answer in 30 s")


def test_of_two_jobs_with_one_output_one_runs(in_jsonl: Path) -> None:
    output = in_jsonl.with_name("out.jsonl")
    first = start("run", in_jsonl, "-o", output, "--model", "m", seconds=0.2)
    wait_for_answer(output)
    first.send_signal(signal.SIGSTOP)  # it lives as long as the second one takes
    status, _, err = run("run", in_jsonl, "-o", output, "--model", "m", "--overwrite")
    first.send_signal(signal.SIGCONT)
    assert (status, "output" in err, "another job is writing it" in err) == (1, True, True)
    assert "loading" not in err
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert len(read_records(output)) == NUM_LINES


def test_an_output_that_is_deleted_while_the_job_runs_is_no_success(in_jsonl: Path) -> None:
    output = in_jsonl.with_name("out.jsonl")
    process = start("run", in_jsonl, "-o", output, "--model", "m", seconds=0.1)
    wait_for_answer(output)
    output.unlink()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.endswith(f"batchllm: output '{output}': was deleted while the job ran\n")


@pytest.mark.parametrize(
    "streams", ["2>/dev/full", ">/dev/full", "2>&-", ">&-", "<&- >&- 2>&-", "| true", "2>&1 | true", "2> >(true)"]
)
def test_the_exit_status_speaks_of_the_answers_and_not_of_the_streams(in_jsonl: Path, streams: str) -> None:
    command = f"batchllm run $D/in.jsonl -o $D/out.jsonl --model m {streams}; exit ${{PIPESTATUS[0]}}"
    status, _, _ = shell(command, in_jsonl.parent)
    assert status == 0
    assert len(read_records(in_jsonl.with_name("out.jsonl"))) == NUM_LINES


def test_failed_lines_are_told_by_the_exit_status_with_all_streams_full(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", [b"{", completion_line("a")])
    status, _, _ = shell("batchllm run $D/in.jsonl -o $D/out.jsonl --model m >/dev/full 2>/dev/full", tmp_path)
    assert status == 3


def test_a_summary_that_cannot_be_written_is_told_and_fails_no_job(in_jsonl: Path) -> None:
    status, out, err = run(
        *("run", in_jsonl, "-o", in_jsonl.with_name("out.jsonl"), "--model", "m"), *("--json-summary", "/dev/full")
    )
    assert status == 0
    assert "summary '/dev/full': No space left on device" in err
    assert "lines answered" in out


def test_a_full_disk_under_the_answers_fails_the_job(in_jsonl: Path) -> None:
    status, _, err = run("run", in_jsonl, "-o", "/dev/full", "--model", "m")
    assert status == 1
    assert "output '/dev/full': No space left on device" in err


@pytest.mark.parametrize(
    "command",
    [
        "batchllm run - -o $D/out.jsonl --model m <$D/in.jsonl",
        "cat $D/in.jsonl | batchllm run - -o $D/out.jsonl --model m",
        "cat $D/in.jsonl | batchllm run /dev/stdin -o $D/out.jsonl --model m",
        "batchllm run <(cat $D/in.jsonl) -o $D/out.jsonl --model m",
        "mkfifo $D/pipe; cat $D/in.jsonl >$D/pipe & batchllm run $D/pipe -o $D/out.jsonl --model m",
        "batchllm run $D/in.jsonl -o /dev/stdout --model m >$D/out.jsonl",
        "batchllm run $D/in.jsonl -o /dev/stdout --model m | cat >$D/out.jsonl",
        "batchllm run $D/in.jsonl -o - --model m >$D/out.jsonl",
        "batchllm run $D/in.jsonl -o >(cat >$D/out.jsonl) --model m; sleep 0.2",
    ],
)
def test_pipes_are_files(in_jsonl: Path, command: str) -> None:
    status, _, err = shell(command, in_jsonl.parent)
    assert status == 0, err
    assert len(read_records(in_jsonl.with_name("out.jsonl"))) == NUM_LINES


def test_answers_go_nowhere_and_errors_to_the_log_without_a_file_in_dev(tmp_path: Path) -> None:
    in_jsonl = write_lines(tmp_path / "in.jsonl", [b"{", completion_line("a")])
    before = set(os.listdir("/dev"))
    status, _, err = run("run", in_jsonl, "-o", "/dev/null", "--model", "m")
    assert status == 3
    assert "line 1: line 1, column 2" in err
    assert set(os.listdir("/dev")) == before


def test_answers_and_messages_are_not_mixed_in_one_file(in_jsonl: Path) -> None:
    command = "batchllm run $D/in.jsonl -o $D/out.jsonl --model m 2>>$D/out.jsonl"
    status, _, _ = shell(command, in_jsonl.parent)
    assert status == 1
    assert "is the standard error file" in in_jsonl.with_name("out.jsonl").read_text()


def test_the_input_is_not_destroyed_by_its_other_name(in_jsonl: Path) -> None:
    data = in_jsonl.read_bytes()
    in_jsonl.with_name("out.jsonl").hardlink_to(in_jsonl)
    for source in ("$D/in.jsonl", "- <$D/in.jsonl"):
        command = f"batchllm run {source} -o $D/out.jsonl --model m --overwrite"
        status, _, err = shell(command, in_jsonl.parent)
        assert (status, "is the input file" in err) == (1, True)
    assert in_jsonl.read_bytes() == data


def test_running_again_keeps_finished_answers_unless_they_may_go(in_jsonl: Path) -> None:
    output = in_jsonl.with_name("out.jsonl")
    assert run("run", in_jsonl, "-o", output, "--model", "m")[0] == 0
    answers = output.read_bytes()
    status, _, err = run("run", in_jsonl, "-o", output, "--model", "m")
    assert status == 1
    ways = "--overwrite replaces it, --resume continues its job"
    assert err == f"batchllm: output '{output}': exists and is not empty; {ways}\n"
    assert output.read_bytes() == answers
    assert run("run", in_jsonl, "-o", output, "--model", "m", "--overwrite")[0] == 0
    assert output.read_bytes() != answers  # every answer has an id of its own
