"""The command, as a person calls it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

import batchllm
import batchllm.llm
from batchllm.cli import app
from batchllm.cli.option_types import Backend, Dtype, Quantization, duration
from batchllm.device.choice import CPU_DTYPES
from batchllm.options import BACKENDS, QUANTIZATIONS
from batchllm.outputs import RequestOutput
from tests.jobs.batch_lines import chat_line, completion_line, read_records, write_lines
from tests.jobs.fake_llm import FakeLLM


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeLLM]:
    """Puts FakeLLM in the place of LLM; the models the command made."""
    models: list[FakeLLM] = []

    def make(*args: str, **options: object) -> FakeLLM:
        models.append(FakeLLM(*args, **options))
        return models[-1]

    monkeypatch.setattr(batchllm.llm, "LLM", make)
    return models


@pytest.fixture
def in_jsonl(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", [chat_line("a"), completion_line("b", max_tokens=3)])


def call(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_run_answers_and_shows_a_summary(made: list[FakeLLM], in_jsonl: Path) -> None:
    out = in_jsonl.with_name("out.jsonl")
    result = call("run", in_jsonl, "-o", out, "--model", "some/dir/")
    assert result.exit_code == 0, result.output
    assert {record["custom_id"] for record in read_records(out)} == {"a", "b"}
    assert (in_jsonl.with_name("out.errors.jsonl")).read_bytes() == b""
    assert made[0].model == "some/dir/"
    assert read_records(out)[0]["response"]["body"]["model"] == "dir"
    assert "lines answered" in result.stdout
    assert "forward" in result.stdout
    assert "loading some/dir/" in result.stderr
    assert "device cpu: asked for\nbackend native\n" in result.stderr
    assert "requests" in result.stderr  # progress


def test_some_failed_lines_are_exit_status_3(made: list[FakeLLM], tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", [b"{", chat_line("a")])
    result = call("run", tmp_path / "in.jsonl", "-o", tmp_path / "o", "--errors", tmp_path / "e", "--model", "m")
    assert result.exit_code == 3
    assert [record["error"]["code"] for record in read_records(tmp_path / "e")] == ["invalid_json_line"]
    assert [record["custom_id"] for record in read_records(tmp_path / "o")] == ["a"]


def test_options_reach_the_model_and_the_requests(made: list[FakeLLM], in_jsonl: Path) -> None:
    options = "--levels 1 --dtype bfloat16 --kv-cache-tokens 512 --max-batch-tokens 64 --page-size 4 --num-threads 2"
    options += " --quantize int8 --device cuda --backend native --generation-config vllm --allow-special-tokens"
    call("run", in_jsonl, "-o", in_jsonl.with_name("o"), "--model", "m", *options.split(), "--max-tokens", 9)
    assert made[0].options == {
        "levels": 1,
        "dtype": "bfloat16",
        "quantize": "int8",
        "device": "cuda",
        "backend": "native",
        "kv_cache_tokens": 512,
        "max_batch_tokens": 64,
        "page_size": 4,
        "num_threads": 2,
        "generation_config": "vllm",
        "allow_special_tokens": True,
        "reasoning_tags": "auto",
    }
    assert [params.max_tokens for params in made[0].params] == [9, 3]


def test_silent_options_leave_the_choice_to_the_model(made: list[FakeLLM], in_jsonl: Path) -> None:
    call("run", in_jsonl, "-o", in_jsonl.with_name("o"), "--model", "m")
    options = {"levels": None, "dtype": "auto", "kv_cache_tokens": None, "max_batch_tokens": 1024, "num_threads": None}
    assert made[0].options == options | {
        "page_size": 16,
        "quantize": None,
        "device": "auto",
        "backend": "auto",
        "generation_config": "auto",
        "allow_special_tokens": False,
        "reasoning_tags": "auto",
    }
    assert [params.max_tokens for params in made[0].params] == [256, 3]


def test_every_dtype_and_backend_of_a_run_is_an_option() -> None:
    assert [dtype.value for dtype in Dtype] == ["auto", *CPU_DTYPES]
    assert [quantization.value for quantization in Quantization] == [*QUANTIZATIONS]
    assert [backend.value for backend in Backend] == list(BACKENDS)


def test_seed_moves_the_seeds_of_requests(made: list[FakeLLM], in_jsonl: Path) -> None:
    for seed in (0, 0, 1):
        call("run", in_jsonl, "-o", in_jsonl.with_name(f"o{len(made)}"), "--model", "m", "--seed", seed)
    seeds = [[params.seed for params in llm.params] for llm in made]
    assert seeds[0] == seeds[1]
    assert not set(seeds[0]) & set(seeds[2])


def test_json_summary_has_the_figures(made: list[FakeLLM], in_jsonl: Path) -> None:
    path = in_jsonl.with_name("summary.json")
    call("run", in_jsonl, "-o", in_jsonl.with_name("o"), "--model", "m", "--json-summary", path)
    summary = json.loads(path.read_text())
    assert (summary["num_answered"], summary["num_failed"]) == (2, 0)
    assert summary["stats"]["steps"] == 7


def test_a_job_that_cannot_run_is_exit_status_1_and_one_line(made: list[FakeLLM], in_jsonl: Path) -> None:
    result = call("run", in_jsonl.with_name("none.jsonl"), "-o", in_jsonl.with_name("o"), "--model", "m")
    assert result.exit_code == 1
    assert result.stderr == f"batchllm: input '{in_jsonl.with_name('none.jsonl')}': no such file\n"
    assert not made


def test_a_missing_model_is_exit_status_1_and_one_line(in_jsonl: Path) -> None:
    result = call("run", in_jsonl, "-o", in_jsonl.with_name("o"), "--model", "/nowhere/at/all")
    assert result.exit_code == 1
    assert "batchllm: model '/nowhere/at/all': no such directory" in result.stderr
    assert not in_jsonl.with_name("o").exists()


def test_an_interrupted_job_is_exit_status_130_and_says_where_its_answers_are(
    made: list[FakeLLM], in_jsonl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = FakeLLM.generate_as_completed

    def interrupt(*args: Any, **options: Any) -> Iterator[tuple[int, RequestOutput]]:
        yield next(generate(*args, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeLLM, "generate_as_completed", interrupt)
    result = call("run", in_jsonl, "-o", in_jsonl.with_name("o"), "--model", "m")
    assert result.exit_code == 130
    assert f"interrupted; the answers so far are in {in_jsonl.with_name('o')}" in result.stderr


def test_interrupted_while_it_loads_a_job_leaves_old_answers_alone(
    in_jsonl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("batchllm.llm.LLM", interrupt)
    old = in_jsonl.with_name("o")
    old.write_text("old answers")
    result = call("run", in_jsonl, "-o", old, "--model", "m", "--overwrite")
    assert result.exit_code == 130
    assert "interrupted; nothing was written" in result.stderr
    assert old.read_text() == "old answers"


def test_a_job_is_resumed_and_its_exit_status_is_of_all_its_runs(made: list[FakeLLM], tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [b"{", chat_line("a"), chat_line("b")])
    command = ["run", source, "-o", tmp_path / "out.jsonl", "--model", "m", "--resume"]
    assert call(*command).exit_code == 3
    answers = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "out.jsonl").write_bytes(answers[:-9])
    result = call(*command)
    assert (result.exit_code, len(made[1].params)) == (3, 1)
    assert "answered or failed in earlier runs" in result.stdout
    assert call(*command).exit_code == 3
    assert len(made) == 2, "of a finished job no model is loaded"
    result = call(*command, "--max-tokens", 5)
    assert result.exit_code == 1
    assert "belongs to another job: max_tokens is 256 there and 5 here" in result.stderr


def test_a_template_and_a_body_make_requests_of_rows(made: list[FakeLLM], tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", [{"text": "one"}, {"text": "three"}])
    (tmp_path / "ask.jinja").write_text("{{ text }}!")
    for template in ("{{ text }}!", tmp_path / "ask.jinja"):
        options = ["--template", template, "--completion", "--body", '{"max_tokens": 3}', "--ordered", "--overwrite"]
        assert call("run", rows, "-o", tmp_path / "out.jsonl", "--model", "m", *options).exit_code == 0
        texts = [r["response"]["body"]["choices"][0]["text"] for r in read_records(tmp_path / "out.jsonl")]
        assert texts == ["4 tokens, sample 0", "6 tokens, sample 0"]
        assert made[-1].params[0].max_tokens == 3


def test_the_first_failed_line_may_end_a_job(made: list[FakeLLM], tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [chat_line("a"), b"{"])
    for options in (["--fail-fast"], ["--max-error-rate", "0.1"]):
        result = call("run", source, "-o", tmp_path / "out.jsonl", "--model", "m", *options)
        assert (result.exit_code, (tmp_path / "out.jsonl").exists()) == (1, False)
        assert "line 2: line 2, column 2" in result.stderr
    assert call("run", source, "-o", tmp_path / "out.jsonl", "--model", "m", "--max-error-rate", "0.5").exit_code == 3


def test_out_of_time_is_exit_status_124(made: list[FakeLLM], in_jsonl: Path) -> None:
    result = call("run", in_jsonl, "-o", in_jsonl.with_name("o"), "--model", "m", "--time-limit", "0:00")
    assert result.exit_code == 124
    assert result.stderr.endswith("batchllm: out of time; nothing was written\n")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("5:30", 330), ("1:00:01", 3601), ("2-12", 216000), ("2-12:30", 217800), ("1-0:0:5", 86405)],
)
def test_durations_are_slurms(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1h", "1:2:3:4", "-5"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected a duration"):
        duration(text)


@pytest.mark.parametrize(
    "options", [["--retry-errors"], ["--resume", "--overwrite"], ["--completion"], ["--body", '{"n": 2}']]
)
def test_options_that_do_not_go_together_are_wrong_usage(in_jsonl: Path, options: list[str]) -> None:
    assert call("run", in_jsonl, "-o", in_jsonl.with_name("o"), "--model", "m", *options).exit_code == 2


def test_metrics_and_a_report_are_written_beside_the_answers(made: list[FakeLLM], in_jsonl: Path) -> None:
    out, page, metrics = (in_jsonl.with_name(name) for name in ("out.jsonl", "page.html", "metrics"))
    result = call("run", in_jsonl, "-o", out, "--model", "m", "--metrics", metrics, "--report", page)
    assert result.exit_code == 0, result.output
    assert "# TYPE batchllm_requests gauge" in metrics.read_text()
    assert "<title>out.jsonl" in page.read_text()


@pytest.mark.parametrize("option", ["--metrics", "--report", "--json-summary"])
def test_no_output_is_another_file_of_the_job(made: list[FakeLLM], in_jsonl: Path, option: str) -> None:
    out = in_jsonl.with_name("out.jsonl")
    for path, name in ((in_jsonl, "input"), (out, "output"), (out.with_suffix(".figures.json"), "figures")):
        held = path.read_bytes() if path.exists() else None
        result = call("run", in_jsonl, "-o", out, "--model", "m", option, path, "--overwrite")
        assert result.exit_code == 1
        assert f"is the {name} file" in result.stderr or f"{str(path)!r}: is the summary file" in result.stderr
        assert (path.read_bytes() if path.exists() else None) == held
    assert not made


def test_a_report_that_cannot_be_made_is_exit_status_1_and_one_line(tmp_path: Path) -> None:
    result = call("report", tmp_path / "none\x1b.jsonl")
    assert result.exit_code == 1
    assert result.stderr.startswith("batchllm: input '")
    assert result.stderr.endswith("': no such file\n")
    assert {c for c in result.stderr if not c.isprintable()} == {"\n"}


@pytest.mark.parametrize(
    "args", [["run"], ["run", "in", "-o", "out"], ["run", "in", "--levels", "2"], ["walk"], ["report"]]
)
def test_wrong_usage_is_exit_status_2(args: list[str]) -> None:
    assert call(*args).exit_code == 2


def test_nothing_of_a_name_or_an_error_is_obeyed_by_a_terminal(in_jsonl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise ValueError("config.json: model_type: got '\x1b[2J'")

    monkeypatch.setattr("batchllm.llm.LLM", refuse)
    result = call("run", in_jsonl, "-o", in_jsonl.with_name("o"), "--model", "m\x1b[2J")
    assert result.exit_code == 1
    assert r"loading m\x1b[2J" in result.stderr
    assert {c for c in result.stdout + result.stderr if not c.isprintable()} == {"\n"}


@pytest.mark.parametrize("wish", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_a_log_has_no_control_codes_whatever_the_environment_wishes(
    made: list[FakeLLM], in_jsonl: Path, monkeypatch: pytest.MonkeyPatch, wish: str
) -> None:
    monkeypatch.setenv(wish, "1")
    for source in (in_jsonl, in_jsonl.with_name("none.jsonl")):
        result = call("run", source, "-o", in_jsonl.with_name("out.jsonl"), "--model", "m")
        assert {c for c in result.stdout + result.stderr if not c.isprintable()} == {"\n"}


@pytest.mark.parametrize("command", ["", "run", "plan", "score", "report"])
def test_help_fits_a_terminal_of_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = call(*command.split(), "--help").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown, "no name is cut"


def test_version() -> None:
    assert call("--version").stdout == f"batchllm {batchllm.__version__}\n"


def test_help_needs_neither_torch_nor_the_extension() -> None:
    code = "import sys, batchllm.cli; print([m for m in ('torch', 'transformers', 'batchllm_ext') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert loaded.stdout == "[]\n"
