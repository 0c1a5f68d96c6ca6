"""The benchmark of the driver runs, and its figures cover every request."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_a_small_job_is_measured(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-m", "benchmarks.job_driver", "--requests", "50", "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(
        [*command, *(["--chat"] if kind == "chat" else [])], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [row] = json.loads((tmp_path / "rows.json").read_text())
    assert (row["requests"], row["kind"]) == (50, kind)
    assert row["cpu_us_per_request"] > 0
