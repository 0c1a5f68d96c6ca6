"""The batch script of the examples, as Slurm runs it: plan, a task per shard, one of them interrupted, merge."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.jobs.batch_lines import completion_line, read_records, write_lines
from tests.jobs.plan_jobs import write_config

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "shards.sbatch"
NUM_SHARDS = 4


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A directory with a job, and in bin/ a command without a model, and an scontrol that notes what it is told."""
    commands = {
        "batchllm": f'#!/bin/bash\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.jobs.fake_command "$@"\n',
        "scontrol": '#!/bin/bash\necho "$@" >> scontrol.log\n',
    }
    (tmp_path / "bin").mkdir()
    for name, text in commands.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    write_config(tmp_path / "model")
    prompts = [[10 + document] * 30 + [question] for question in range(5) for document in range(8)]
    write_lines(tmp_path / "questions.jsonl", [completion_line(str(i), ids) for i, ids in enumerate(prompts)])
    return tmp_path


def start(cluster: Path, *command: object, **environment: object) -> subprocess.Popen[bytes]:
    variables = {name: str(value) for name, value in environment.items()}
    path = f"{cluster / 'bin'}:{os.environ['PATH']}"
    return subprocess.Popen(
        [str(word) for word in command], cwd=cluster, env=os.environ | variables | {"PATH": path, "MODEL": "model"}
    )


def task(cluster: Path, number: int, **environment: object) -> subprocess.Popen[bytes]:
    slurm = {"SLURM_ARRAY_TASK_ID": number, "SLURM_ARRAY_TASK_COUNT": NUM_SHARDS, "SLURM_ARRAY_JOB_ID": 77}
    return start(cluster, "bash", SCRIPT, **slurm, **environment)


def test_an_array_of_shards_answers_the_job(cluster: Path) -> None:
    plan = ("batchllm", "plan", "questions.jsonl", "--model", "model", "--shards", NUM_SHARDS, "-o", "shards")
    assert start(cluster, *plan).wait() == 0
    answers = cluster / "shards" / "shard-0002-of-0004.answers.jsonl"
    killed = task(cluster, 2, FAKE_SECONDS=0.2)
    while not (answers.exists() and answers.stat().st_size):
        assert killed.poll() is None
    for command in psutil.Process(killed.pid).children():
        command.terminate()
    assert killed.wait() == 0  # scontrol's
    assert (cluster / "scontrol.log").read_text() == "requeue 77_2\n"
    assert 0 < len(read_records(answers)) < 10
    tasks = [task(cluster, number) for number in range(1, NUM_SHARDS + 1)]
    assert [process.wait() for process in tasks] == [0] * NUM_SHARDS

    shards = sorted((cluster / "shards").glob("*.answers.jsonl"))
    assert len(shards) == NUM_SHARDS
    merge = ("batchllm", "merge", "questions.jsonl", *shards, "-o", "answers.jsonl", "--ordered")
    assert start(cluster, *merge).wait() == 0
    ids = [record["custom_id"] for record in read_records(cluster / "answers.jsonl")]
    assert ids == [str(i) for i in range(40)]
    assert (cluster / "answers.errors.jsonl").read_bytes() == b""
    again = ("batchllm", "run", "questions.jsonl", "-o", "answers.jsonl", "--model", "model", "--ordered", "--resume")
    assert start(cluster, *again).wait() == 0  # it is that job's output


def test_a_shard_that_cannot_run_is_not_tried_again(cluster: Path) -> None:
    assert task(cluster, 1).wait() == 1  # there is no such file
    assert not (cluster / "scontrol.log").exists()
