"""Contests of fake contestants."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import compare, compare_report
from benchmarks.bound import Work
from benchmarks.compare import Contest, Job
from benchmarks.contestant import PRECISIONS
from benchmarks.contestant_process import ContestantError, ContestantProcess
from tests.benchmarks import fake_contestant
from tests.benchmarks.test_bound import TINY

ROOT = Path(__file__).resolve().parents[2]
CEILINGS = {f"gemm_gflops_m{rows}": 100.0 + rows for rows in (1, 16, 64, 256, 2048)} | {
    "lm_head_gflops": 90.0,
    "read_gb_per_s": 50.0,
}


def fake(behaviour: str) -> str:
    return f"{sys.executable} {fake_contestant.__file__} {behaviour}"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    path = tmp_path / "job.jsonl"
    rows = [{"prompt_token_ids": [1, 2, 3 + i], "max_tokens": 2 + i, "group": 0} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Job("job", path)


def contest(**commands: str) -> Contest:
    return Contest(commands, timeout_s=30, quiet_limit_s=0)


def within_seconds(limit_s: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_stopped(pid: int) -> bool:
    return state(pid) == "T"


def is_alive(pid: int) -> bool:
    try:
        return state(pid) != "Z"
    except FileNotFoundError:
        return False


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_contestants_take_turns_in_an_order_that_rotates(job: Job) -> None:
    with contest(a=fake("honest"), b=fake("honest"), c=fake("honest")) as three:
        rows = three.run(job, 3, lambda arithmetic: CEILINGS)
    assert "".join(row["contestant"] for row in rows) == "abcbcacab"
    assert [row["round"] for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert all(CEILINGS.items() <= row.items() for row in rows)
    assert three.failures == []


def test_a_contestant_is_stopped_when_it_is_not_its_turn(job: Job) -> None:
    process = ContestantProcess("a", fake("honest"))
    for message in ({"load": None}, {"run": str(job.path)}):
        process.ask(message, 30)
        assert within_seconds(1, lambda: is_stopped(process.process.pid))
    process.close()
    assert process.process.returncode == 0, "asked to end, it ends by itself"


def test_one_that_dies_is_reported_and_the_others_go_on(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    with contest(a=fake("honest"), bad=fake("dies"), c=fake("honest")) as three:
        rows = three.run(job, 2, lambda arithmetic: CEILINGS)
        assert "".join(row["contestant"] for row in rows) == "acca"
        (failure,) = three.failures
        assert "bad: exit status 1" in failure
        assert "RuntimeError: out of luck" in failure
        assert failure in capsys.readouterr().err
        three.run(job, 1, lambda arithmetic: CEILINGS)
        assert len(three.failures) == 2, "it has another chance on the next job"


def test_wrong_lengths_give_no_row(job: Job) -> None:
    with contest(a=fake("short")) as one:
        assert one.run(job, 2, lambda arithmetic: CEILINGS) == []
    assert "request 0: expected 2 output tokens, got 1" in one.failures[0]


def test_one_that_does_not_answer_is_ended(job: Job) -> None:
    process = ContestantProcess("slow", fake("hangs"))
    process.ask({"load": None}, 30)
    start = time.monotonic()
    with pytest.raises(ContestantError, match="slow: no answer in 0 s"):
        process.ask({"run": str(job.path)}, 0.2)
    assert time.monotonic() - start < 5
    assert not is_alive(process.process.pid)


def test_one_that_is_stopped_does_not_outlive_its_starter() -> None:
    lines = [
        "import os, signal",
        "from benchmarks.contestant_process import ContestantProcess",
        "from tests.benchmarks.test_compare import is_stopped, within_seconds",
        f"process = ContestantProcess('a', {fake('honest')!r})",
        "process.ask({'load': None}, 30)",
        "print(process.process.pid, flush=True)",
        "assert within_seconds(1, lambda: is_stopped(process.process.pid))",
        "os.kill(os.getpid(), signal.SIGKILL)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert within_seconds(5, lambda: not is_alive(int(done.stdout)))


def test_a_command_that_is_none_is_reported(job: Job) -> None:
    with contest(a="false") as one:
        assert one.run(job, 1, lambda arithmetic: CEILINGS) == []
    assert "a: exit status 1" in one.failures[0]


def test_a_job_with_a_pool_of_its_own_is_loaded_for(job: Job) -> None:
    with contest(a=fake("honest")) as one:
        seen = [
            one.run(Job(job.name, job.path, kv_tokens), 1, lambda arithmetic: CEILINGS)[0]["kv_tokens_seen"]
            for kv_tokens in (None, 64, 64, None)
        ]
    assert seen == [None, 64, 64, None]


def test_arguments_that_name_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="contestant 'vlm': expected NAME=COMMAND or one of batchllm, "):
        compare.parse_contestants(["vlm"], python="python", model="m", peers="p")
    with pytest.raises(ValueError, match="workload 'W9': expected a file or one of W1"):
        compare.make_job("W9", tmp_path)


def test_what_is_known_runs_in_a_precision_that_is_known() -> None:
    commands = compare.parse_contestants(list(compare.KNOWN), python="python", model="m", peers="p")
    for name, command in commands.items():
        for option in ("--dtype", "--quantize"):
            if option in command:
                dtype = command.split(f"{option} ")[1].split()[0]
                assert dtype in PRECISIONS, name
                assert name.endswith(dtype) or (name, dtype) == ("batchllm", "bfloat16")


@pytest.mark.parametrize(
    ("dtype", "precision", "arithmetic"),
    [
        ("float32", "float32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("int8", "int8", "int8"),
        ("Q8_0", "int8", "int8"),
        ("Q4_K_M", "int4", "int8"),
    ],
)
def test_a_contestant_is_held_to_products_of_its_own_precision(
    job: Job, dtype: str, precision: str, arithmetic: str
) -> None:
    with contest(a=fake("honest bfloat16"), b=fake(f"honest {dtype}")) as two:
        rows = two.run(job, 2, lambda kind: CEILINGS | {"gemm_gflops_m2048": float(len(kind))})
    of_b = [row for row in rows if row["contestant"] == "b"]
    assert [(row["dtype"], row["precision"]) for row in of_b] == [(dtype, precision)] * 2
    assert {row["gemm_gflops_m2048"] for row in of_b} == {len(arithmetic)}
    assert {row["gemm_gflops_m2048"] for row in rows if row["contestant"] == "a"} == {len("bfloat16")}


def test_the_machine_is_measured_once_a_round_in_each_precision_that_runs(job: Job) -> None:
    asked: list[str] = []

    def measure(arithmetic: str) -> dict[str, float]:
        asked.append(arithmetic)
        return CEILINGS

    dtypes = {"a": "bfloat16", "b": "Q8_0", "c": "bfloat16", "d": "Q4_K_M"}
    commands = {name: fake(f"honest {dtype}") for name, dtype in dtypes.items()} | {"bad": "false"}
    with contest(**commands) as five:
        five.run(job, 2, measure)
    assert asked == ["bfloat16", "int8"] * 2, "and not in what has died"


def run(
    contestant: str,
    number: int,
    wall_s: float,
    *,
    workload: str = "W1",
    foreign: float = 0.0,
    precision: str = "bfloat16",
    isa: str = "",
) -> dict:
    row = dict.fromkeys(compare_report.COLUMNS, "") | CEILINGS
    row |= {"dtype": precision, "precision": precision, "isa": isa}
    counts = {"requests": 2, "prompt_tokens": 8, "distinct_prompt_tokens": 6, "output_tokens": 4, "peak_rss_gib": 0.5}
    identity = {"workload": workload, "contestant": contestant, "version": "11434", "round": number, "wall_s": wall_s}
    return row | counts | identity | {"bound_s": 1.0, "foreign_share": foreign, "machine": "a machine"}


def test_a_ratio_is_of_medians_and_round_by_round() -> None:
    rows = [run("base", 0, 4.0), run("new", 0, 2.0), run("new", 1, 3.0), run("base", 1, 5.0), run("base", 2, 9.0)]
    base, new = compare_report.standings(rows)
    assert (base.ratio(), base.round_ratios()) == (1.0, [1.0, 1.0, 1.0])
    assert (new.ratio(), new.round_ratios()) == (0.5, [0.5, 0.6])
    assert base.bound_share() == 1 / 5


def test_a_disturbed_run_counts_only_where_all_are() -> None:
    (standing,) = compare_report.standings([run("a", 0, 2.0), run("a", 1, 9.0, foreign=0.5)])
    assert standing.median_s() == 2.0
    (standing,) = compare_report.standings([run("a", 0, 2.0, foreign=0.5), run("a", 1, 4.0, foreign=0.5)])
    assert standing.median_s() == 3.0


def test_the_results_keep_the_rows_of_other_jobs(tmp_path: Path) -> None:
    compare_report.write([run("a", 0, 2.0), run("b", 0, 3.0)], tmp_path)
    compare_report.write([run("a", 0, 7.0, workload="W2")], tmp_path)
    compare_report.write([run("a", 0, 5.0)], tmp_path)
    rows = compare_report.read_csv(tmp_path / "engines.csv")
    assert [(row["workload"], row["contestant"], row["wall_s"]) for row in rows] == [("W1", "a", 5), ("W2", "a", 7)]
    page = (tmp_path / "engines.md").read_text()
    assert page.index("## W1") < page.index("## W2") < page.index("## Contestants")
    assert page.split("## Contestants")[1].count("11434") == 1, "the version is one, written or read"
    assert (tmp_path / "engines.png").stat().st_size > 0


def test_precisions_have_tables_of_their_own_and_keep_their_rows(tmp_path: Path) -> None:
    compare_report.write([run("a", 0, 2.0), run("b", 0, 3.0), run("c", 0, 9.0, precision="int8")], tmp_path)
    compare_report.write([run("d", 0, 5.0, precision="int8"), run("e", 0, 10.0, precision="int8")], tmp_path)
    rows = compare_report.read_rows(tmp_path / "engines.csv")
    assert [(row["contestant"], row["precision"]) for row in rows] == [
        *(("a", "bfloat16"), ("b", "bfloat16")),
        *(("d", "int8"), ("e", "int8")),
    ]
    page = (tmp_path / "engines.md").read_text().split("## Contestants")[0]
    bfloat16, int8 = page.split("### bfloat16")[1].split("### int8")
    assert "Matrix products in bfloat16" in bfloat16
    assert "Matrix products in int8" in int8
    ratios = {
        cells[1]: cells[4]
        for cells in ([cell.strip() for cell in line.split("|")] for line in page.splitlines())
        if cells[1:2] and cells[1] in ("a", "b", "d", "e")
    }
    assert ratios == {"a": "1.000", "b": "1.500", "d": "1.000", "e": "2.000"}


def test_what_was_limited_has_tables_of_its_own_and_keeps_its_rows(tmp_path: Path) -> None:
    compare_report.write([run("a", 0, 2.0, precision="int8"), run("b", 0, 3.0, precision="int8")], tmp_path)
    compare_report.write([run("c", 0, 4.0, isa="avx2"), run("d", 0, 8.0, precision="int8", isa="avx2")], tmp_path)
    compare_report.write([run("e", 0, 5.0, precision="int8")], tmp_path)
    compare_report.write([run("f", 0, 16.0, precision="int8", isa="avx2")], tmp_path)
    rows = compare_report.read_rows(tmp_path / "engines.csv")
    titles = {row["contestant"]: compare_report.table_title(row) for row in rows}
    assert titles == {"e": "int8", "c": "bfloat16, avx2", "f": "int8, avx2"}
    page = (tmp_path / "engines.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("###")] == [
        "### int8",
        "### bfloat16, avx2",
        "### int8, avx2",
    ]


@pytest.mark.parametrize("name", ["precision", "isa"])
def test_rows_of_an_older_file_are_of_what_their_weights_were_and_not_limited(tmp_path: Path, name: str) -> None:
    compare_report.write([run("a", 0, 2.0), run("b", 0, 3.0)], tmp_path)
    path = tmp_path / "engines.csv"
    rows = [{key: value for key, value in row.items() if key != name} for row in compare_report.read_csv(path)]
    compare_report.write_csv(rows, path)
    compare_report.write([run("c", 0, 1.0, precision="float32")], tmp_path)
    rows = compare_report.read_rows(path)
    assert [(row["contestant"], row["precision"], row["isa"]) for row in rows] == [
        *(("a", "bfloat16", ""), ("b", "bfloat16", "")),
        ("c", "float32", ""),
    ]
    assert list(rows[0]) == list(compare_report.COLUMNS)


def test_first_tokens_are_those_of_the_first_contestant_in_the_same_precision() -> None:
    def row(contestant: str, precision: str, token: int) -> dict:
        return run(contestant, 0, 1.0, precision=precision) | {"first_tokens": [token, 2]}

    rows = [row("c", "int8", 5), row("b", "bfloat16", 7), row("a", "bfloat16", 1), row("d", "int8", 5)]
    work = Work(distinct_prompt_tokens=6, decode_tokens=1, output_tokens=4, attention_pairs={-1: 9})
    finished = compare_report.finished(rows, ["a", "d", "b", "c"], work, TINY, "a machine")
    same = {row["contestant"]: row["same_first_tokens"] for row in finished}
    assert same == {"a": 1, "b": 0.5, "c": 1, "d": 1}


def test_the_command_compares_and_writes(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16}
    config |= {
        "vocab_size": 32,
        "max_position_embeddings": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(compare, "measure_ceilings", lambda model, arithmetic: CEILINGS)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    arguments = f"--workloads {job.path} --rounds 2 --isa avx2 --quiet-limit 0 --model {tmp_path} -o {tmp_path / 'out'}"
    contestants = [f"base={fake('honest')}", f"new={fake('honest')}", f"bad={fake('dies')}"]
    monkeypatch.setattr(sys, "argv", ["compare", *contestants, *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        compare.main()
    assert ended.value.code == 1, "one contestant failed"
    said = capsys.readouterr()
    assert "3 requests, 9 prompt tokens of which 5 are distinct, 9 output tokens" in said.out
    rows = compare_report.read_csv(tmp_path / "out/engines.csv")
    assert [row["contestant"] for row in rows] == ["base", "new", "new", "base"]
    assert {row["same_first_tokens"] for row in rows} == {1}
    assert {row["isa"] for row in rows} == {"avx2"}
