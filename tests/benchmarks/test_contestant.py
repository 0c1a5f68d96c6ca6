"""The protocol of contestants."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.contestant import Request, check_outputs, read_requests
from tests.benchmarks import fake_contestant

REQUESTS = [Request([5, 6, 7], 3, group=0), Request([5, 8], 2, group=0)]


def job_file(directory: Path) -> Path:
    path = directory / "job.jsonl"
    path.write_text("".join(json.dumps(vars(request)) + "\n" for request in REQUESTS))
    return path


def serve(behaviour: str, *messages: dict) -> subprocess.CompletedProcess[str]:
    lines = "".join(json.dumps(message) + "\n" for message in messages)
    command = [sys.executable, fake_contestant.__file__, behaviour]
    return subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60)


def test_every_line_gets_one_line(tmp_path: Path) -> None:
    path = job_file(tmp_path)
    done = serve("honest", {"load": 64}, {"run": str(path)}, {"load": None}, {"run": str(path)})
    loaded, ran, loaded_again, ran_again = map(json.loads, done.stdout.splitlines())
    assert loaded.pop("load_s") >= 0
    precision = {"dtype": "bfloat16", "precision": "bfloat16"}
    assert loaded == {"engine": "fake", "version": "1", "variant": "honest", **precision}
    assert loaded_again.keys() > loaded.keys()
    assert (ran["workload"], ran["requests"], ran["prompt_tokens"], ran["output_tokens"]) == ("job", 2, 5, 5)
    assert ran["first_tokens"] == [7, 8]
    assert (ran["kv_tokens_seen"], ran_again["kv_tokens_seen"]) == (64, None)
    assert done.returncode == 0


def test_what_libraries_print_is_no_answer(tmp_path: Path) -> None:
    done = serve("talks", {"load": None}, {"run": str(job_file(tmp_path))})
    assert [json.loads(line).get("workload") for line in done.stdout.splitlines()] == [None, "job"]
    for said in ("from Python", "from C", "from a child"):
        assert said in done.stderr


def test_a_job_with_outputs_of_a_wrong_length_has_no_time(tmp_path: Path) -> None:
    done = serve("short", {"load": None}, {"run": str(job_file(tmp_path))})
    assert len(done.stdout.splitlines()) == 1
    assert done.returncode != 0
    assert "request 0: expected 3 output tokens, got 2" in done.stderr


def test_a_missing_output_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 outputs, got 1"):
        check_outputs(REQUESTS, [[1, 1, 1]])


def test_requests_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_requests(job_file(tmp_path)) == REQUESTS
