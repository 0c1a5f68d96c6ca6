"""A few kills of `make chaos`."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_job_that_is_killed_again_and_again_answers_every_line_once() -> None:
    command = [sys.executable, "-m", "tests.jobs.chaos", "6", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
