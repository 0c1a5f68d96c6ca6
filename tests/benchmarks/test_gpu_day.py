"""The kit for a day with a GPU, as far as a CPU can test it: its stages, its result lines, and the page made from
them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import batchllm_ext as ext
from batchllm import SamplingParams
from benchmarks.gpu_day import bench, contestants, device, jobs, pytest_plugin, random_llm, report, results, stages
from benchmarks.gpu_day.forest import Forest, Shape
from benchmarks.gpu_day.report import page, write

ROOT = Path(__file__).resolve().parents[2]
GPU = {
    "what": "gpu",
    "name": "Imagined 100",
    "capability": "9.0",
    "multiprocessors": 132,
    "memory_bytes": 80 << 30,
    "l2_bytes": 50 << 20,
    "driver_version": "580.1",
}
SHAPE = {"groups": 1, "prefix": 2048, "readers": 64, "own": 64, "rows_each": 1}
RUN = [
    {"what": "run", "dry": False, "time": "2026-11-27T00:00:00+00:00", "commit": "0123456789abcdef", "stages": []},
    {"what": "versions", "python": "3.12.3", "torch": "2.11.0", "vllm": None},
    GPU,
    {"what": "ceilings", "copy_bytes_per_s": 3.0e12, "read_bytes_per_s": 2.8e12, "bf16_flops_per_s": 8.0e14},
    {"stage": "env", "rc": 0, "seconds": 9.0},
    {"what": "smoke", "check": "rotate", "relative_error": 0.002},
    {"what": "smoke", "check": "append_kv", "error": "AssertionError: not finite"},
    {"stage": "smoke", "rc": 1, "seconds": 12.0},
    {"what": "failed test", "suite": "kernels", "test": "tests/a.py::test_b", "message": "one | two\nthree"},
    {"what": "tests", "suite": "kernels", "seconds": 61.0, "passed": 801, "failed": 1, "skipped": 3},
    {"what": "decode", **SHAPE, "contestant": "ours", "us": 30.0, "floor_us": 9.0, "predicted_us": 14.0},
    {"what": "decode", **SHAPE, "contestant": "SDPA flash", "us": 170.5},
    {"what": "decode", **SHAPE, "contestant": "FlashInfer", "skipped": "flashinfer is not installed"},
    {"what": "prefill", "rows": 2048, "context": 4096, "contestant": "ours", "us": 310.0, "floor_us": 155.0},
    {"what": "splits", **SHAPE, "multiprocessors": 132, "items": 48, "us": 31.0},
    {"what": "costs", "launch_s": 1.5e-6, "key_s_narrow": 1.96e-8},
    {"what": "operation", "operation": "rotate", "rows": 256, "us": 3.5, "gb_per_s": 900.0, "of_copy": 0.3},
    {"what": "product", "product": "qkv", "rows": 256, "us": 40.0, "tflops_per_s": 322.0, "of_floor": 0.81},
    *(
        {"what": "job", "job": "W1", "contestant": f"ours, sharing {sharing}", "seconds": seconds, "roofline_s": 1.5,
         "requests": 256, "prompt_tokens": 278528, "computed_prompt_tokens": computed, "output_tokens": 8192,
         "steps": 40, "captures": 3}
        for sharing, seconds, computed in (("any depth", 2.0, 24576), ("none", 9.5, 278528))
    ),
    {"what": "job", "job": "W1", "contestant": "transformers, continuous batching", "seconds": 31.0},
    {"what": "profile", "job": "W1", "seconds": 2.0, "gpu_busy": 0.9, "kernel_s": {"attention_kernel": 0.5}},
    {"stage": "ncu", "skipped": "ncu is not on PATH"},
]  # fmt: skip


def rows_of(text: str) -> list[list[str]]:
    """The cells of each line of a table."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


@pytest.fixture
def lines_of(tmp_path, monkeypatch):
    """What programs of this process write from now on."""
    for module in (results, stages):
        monkeypatch.setattr(module, "OUT", tmp_path)
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results.jsonl")
    return lambda: results.read(tmp_path / "results.jsonl")


def save(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def kit(out: Path, **environment: str) -> subprocess.CompletedProcess:
    settings = {"OUT": str(out), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    command = ["bash", str(ROOT / "benchmarks/gpu_day/run.sh")]
    return subprocess.run(command, env=os.environ | settings, cwd=out.parent, capture_output=True, text=True)


# The page.


def test_the_page_names_the_card_and_holds_every_table(tmp_path):
    write([save(tmp_path / "results.jsonl", RUN)], tmp_path / "docs")
    text = (tmp_path / "docs/gpu.md").read_text()
    assert "Imagined 100, 132 multiprocessors, 80 GiB, driver 580.1" in text
    assert "torch 2.11.0" in text
    assert "vllm" not in text
    assert "copy 3.00 TB/s" in text
    for title, *_ in report.TABLES:
        assert f"## {title}\n" in text
    rows = rows_of(text)
    assert ["kernels", "801", "1", "3", "61"] in rows
    assert ["smoke", "1", "1", "0", ""] in rows
    assert ["ncu", "ncu is not on PATH", ""] in rows
    assert ["1", "2048", "64", "64", "30", "170", "9", "30 %", "14"] in rows
    assert ["2048", "4096", "310", "155", "50 %"] in rows
    assert ["launch_s", "1.5e-06"] in rows
    assert ["W1", "2", "9.5", "31"] in rows
    assert ["W1", "ours, sharing any depth", "2", "75 %", "128", "24,576", "278,528", "40", "3"] in rows
    assert ["attention_kernel", "W1", "500", "25 %"] in rows


def test_the_results_are_kept_beside_the_page(tmp_path):
    write([save(tmp_path / "results.jsonl", RUN)], tmp_path / "docs")
    assert results.read(tmp_path / "docs/gpu.jsonl") == RUN


def test_what_failed_or_was_skipped_has_no_figure(tmp_path):
    text = page(RUN)
    assert "FlashInfer" not in text
    assert ["failed test kernels tests/a.py::test_b", "one / two three"] in rows_of(text)
    assert ["smoke append_kv", "AssertionError: not finite"] in rows_of(text)


def test_several_runs_on_one_card_make_one_page_in_which_the_last_measurement_counts(tmp_path):
    again = [*RUN[:4], {**SHAPE, "what": "decode", "contestant": "ours", "us": 25.0, "floor_us": 9.0}]
    write([save(tmp_path / "1.jsonl", RUN), save(tmp_path / "2.jsonl", again)], tmp_path)
    assert ["1", "2048", "64", "64", "25", "170", "9", "36 %", ""] in rows_of((tmp_path / "gpu.md").read_text())


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([RUN[0] | {"dry": True}, *RUN[1:]], "dry run"),
        ([*RUN, RUN[0] | {"dry": True}], "dry run"),
        ([line for line in RUN if line is not GPU], "no line of the GPU"),
        ([{"what": "gpu", "error": "CUDA is lost"} if line is GPU else line for line in RUN], "no line of the GPU"),
        (RUN[1:], "no line of a run"),
        ([], "no line of a run"),
        ([*RUN, GPU | {"name": "Another"}], "Another, Imagined 100"),
    ],
)
def test_a_page_is_of_one_gpu(tmp_path, lines, reason):
    path = save(tmp_path / "results.jsonl", lines)
    with pytest.raises(ValueError, match=reason):
        write([path], tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


def test_a_line_that_is_no_json_is_named_and_one_that_was_cut_off_is_left_out(tmp_path):
    path = save(tmp_path / "results.jsonl", RUN)
    whole = path.read_text()
    path.write_text(whole + '{"what": "dec')
    assert results.read(path) == RUN
    path.write_text("nonsense\n" + whole)
    with pytest.raises(ValueError, match=r"results\.jsonl:1: not JSON"):
        results.read(path)
    path.write_text(whole + "7\n")
    with pytest.raises(ValueError, match=rf"results\.jsonl:{len(RUN) + 1}: expected a JSON object"):
        results.read(path)


# The stages.


def test_a_dry_run_has_a_line_for_each_stage_in_the_order_given(tmp_path):
    out = tmp_path / "out"
    done = kit(out, GPU_DAY_DRY="1", STAGES="smoke ncu env kernels")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = results.read(out / "results.jsonl")
    assert [line["stage"] for line in lines if "stage" in line] == ["smoke", "ncu", "env", "kernels"]
    assert [line.get("rc", line.get("skipped")) for line in lines if "stage" in line] == [
        *(0, "a dry run has no GPU", 0, "a dry run has no GPU")
    ]
    assert lines[0]["dry"] is True
    assert any(line.get("what") == "ceilings" for line in lines)
    with pytest.raises(ValueError, match="dry run"):
        write([out / "results.jsonl"], tmp_path / "docs")


def test_costs_are_measured_in_the_form_of_the_table(tmp_path):
    out = tmp_path / "out"
    done = kit(out, GPU_DAY_DRY="1", STAGES="costs")
    assert done.returncode == 0, done.stdout + done.stderr
    (costs,) = [line for line in results.read(out / "results.jsonl") if line.get("what") == "costs"]
    log = (out / "log.txt").read_text()
    assert "dry: on a CPU" in log
    for name in ("flops_per_s", "bytes_per_s", "multiprocessor_bytes_per_s", "launch_s", "block_s"):
        assert f".{name} = " in log
        assert f"// in the table {ext.gpu_models()['h100'][name]:.4g}" in log
    assert {f"key_s_{kind}" for kind in ("narrow", "medium", "large")} < costs.keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_every_stage_is_skipped_and_says_why(tmp_path):
    done = kit(tmp_path / "out", GPU_DAY_DRY="0")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in results.read(tmp_path / "out/results.jsonl") if "stage" in line]
    assert lines == [{"stage": name, "skipped": "torch sees no GPU"} for name in stages.STAGES]


def test_a_stage_that_does_not_exist_is_refused_before_anything_runs(tmp_path):
    done = kit(tmp_path / "out", STAGES="env smok", GPU_DAY_DRY="1")
    assert done.returncode != 0
    assert "no stage smok; there are env, smoke" in done.stderr
    assert not (tmp_path / "out/results.jsonl").exists()


def test_a_run_begins_a_file_and_keeps_those_of_earlier_runs(tmp_path, lines_of):
    for run in range(3):
        results.set_older_aside()
        results.record("run", number=run)
    assert lines_of() == [{"what": "run", "number": 2}]
    older = [results.read(tmp_path / f"results.{number}.jsonl")[0]["number"] for number in (1, 2)]
    assert older == [0, 1]


def stage_of(*scripts: str, limit_s: float = 30) -> stages.Stage:
    return stages.Stage(lambda: [stages.Command([sys.executable, "-c", script], limit_s) for script in scripts])


def test_a_stage_goes_on_after_a_command_that_fails_and_is_red(tmp_path, lines_of):
    stage = stage_of("raise SystemExit(3)", f"open({str(tmp_path / 'second')!r}, 'w')", "raise SystemExit(4)")
    assert stages.run_stage("broken", stage, time.time() + 60, 1) == 3
    assert (tmp_path / "second").exists()
    (line,) = lines_of()
    assert (line["stage"], line["rc"]) == ("broken", 3)


def test_a_command_is_ended_at_its_limit_with_the_processes_that_it_started(tmp_path, lines_of, monkeypatch):
    monkeypatch.setattr(stages, "LEAST_S", 0)
    monkeypatch.setattr(stages, "GRACE_S", 0.5)
    child = "import time; time.sleep(99)"
    script = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", {child!r}])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
time.sleep(99)
"""
    begin = time.time()
    assert stages.run_stage("stuck", stage_of(script, limit_s=3), begin + 60, 1) == stages.TIMED_OUT
    assert time.time() - begin < 30
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_every_test_that_is_marked_gpu_belongs_to_one_suite():
    files = [set(arg for arg in stages.pytest(suite) if arg.startswith("tests/")) for suite in ("kernels", "engine")]
    assert not files[0] & files[1]
    marked = subprocess.run(
        ["grep", "-rlE", r"(pytestmark =|@|marks=)\s*pytest\.mark\.gpu", "tests", "--include=*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert set(marked.stdout.split()) <= files[0] | files[1]


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        (stages.Stage(list, tool="no-such-tool"), "no-such-tool is not on PATH"),
        (stages.Stage(list, package="no_such_package"), "no_such_package is not installed"),
        (stages.Stage(list), None),
    ],
)
def test_a_stage_without_its_tool_or_package_says_so(monkeypatch, stage, reason):
    monkeypatch.setattr(stages, "DRY", False)
    assert stages.why_skipped(stage, None, time.time() + 60) == reason
    assert stages.why_skipped(stage, "torch sees no GPU", time.time() + 60) == "torch sees no GPU"
    assert stages.why_skipped(stage, None, time.time() + 1) in (reason, "no time left")


def test_no_command_is_begun_without_time(lines_of):
    assert stages.run_stage("late", stage_of("raise SystemExit(1)"), time.time() + 1, 1) == 0
    assert "no time left" in lines_of()[0]["skipped"]


# The parts of a program.


def test_a_program_goes_on_after_a_part_that_fails_and_what_is_missing_is_no_failure(lines_of):
    attempt = device.Attempts()
    with attempt("first", shape=1):
        raise device.Skip("not installed")
    assert attempt.exit_status == 0
    with attempt("second", shape=2):
        raise ValueError("wrong")
    with attempt("third"):
        pass
    assert attempt.exit_status == 1
    assert lines_of() == [
        {"what": "first", "shape": 1, "skipped": "not installed"},
        {"what": "second", "shape": 2, "error": "ValueError: wrong"},
    ]


def test_tests_become_lines_as_they_fail(tmp_path):
    (tmp_path / "test_three.py").write_text(
        "import pytest\n"
        "def test_right(): pass\n"
        "def test_wrong(): assert 1 == 2\n"
        "@pytest.mark.skip\ndef test_left_out(): pass\n"
        "@pytest.fixture\ndef broken(): raise OSError('no memory')\n"
        "def test_without_its_fixture(broken): pass\n"
    )
    options = ["-p", "benchmarks.gpu_day.pytest_plugin", "--suite", "three", "-o", "addopts="]
    environment = os.environ | {"OUT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path / "test_three.py"), "--rootdir", str(tmp_path)]
    subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True)
    *failed, counts = results.read(tmp_path / "results.jsonl")
    assert [(line["what"], line["test"].partition("::")[2]) for line in failed] == [
        ("failed test", "test_wrong"),
        ("failed test", "test_without_its_fixture"),
    ]
    assert {name: counts[name] for name in ("what", "suite", "passed", "failed", "skipped")} == {
        **{"what": "tests", "suite": "three", "passed": 1, "failed": 2, "skipped": 1}
    }


@pytest.mark.parametrize(("is_lost", "is_worker"), [(True, True), (False, True), (True, False)])
def test_a_worker_ends_after_the_test_that_lost_its_cuda_context(monkeypatch, is_lost, is_worker):
    ended = []
    monkeypatch.setattr(pytest_plugin, "context_is_lost", lambda: is_lost)
    monkeypatch.setattr(os, "_exit", ended.append)
    config = SimpleNamespace(workerinput={}) if is_worker else SimpleNamespace()
    pytest_plugin.pytest_runtest_teardown(SimpleNamespace(config=config))
    assert ended == ([device.CONTEXT_LOST] if is_lost and is_worker else [])


# What is run.


def raising(message: str):
    def make(forest):
        raise RuntimeError(message)

    return make


def test_a_contestant_without_a_kernel_is_left_out_and_any_other_error_is_one():
    for message in (
        "No available kernel. Aborting execution.",
        "JIT compilation is disabled via FLASHINFER_DISABLE_JIT",
    ):
        with pytest.raises(device.Skip):
            bench.contest(None, raising(message))
    with pytest.raises(RuntimeError, match="out of memory"):
        bench.contest(None, raising("CUDA error: out of memory"))


def test_a_contestant_with_a_wrong_result_is_not_timed(monkeypatch):
    monkeypatch.setattr("benchmarks.gpu_day.forest.DEVICE", "cpu")
    monkeypatch.setattr("benchmarks.gpu_day.device.DEVICE", "cpu")
    forest = Forest(Shape(0, 2, 9), heads=(4, 2), head_dim=8)
    wrong = contestants.Contestant(lambda turn: torch.ones_like(forest.q), 1, lambda out: out)
    with pytest.raises(AssertionError, match="relative error"):
        bench.contest(forest, lambda _: wrong)


@pytest.mark.parametrize("shape", [Shape(33, 3, 5, groups=2), Shape(0, 4, 17), Shape(0, 1, 20, rows_each=7)], ids=str)
def test_the_reference_of_a_forest_is_softmax_over_what_each_row_sees(shape, monkeypatch):
    monkeypatch.setattr("benchmarks.gpu_day.forest.DEVICE", "cpu")
    monkeypatch.setattr("benchmarks.gpu_day.device.DEVICE", "cpu")
    torch.manual_seed(0)
    forest = Forest(shape, heads=(4, 2), head_dim=8)
    for request in range(shape.num_requests):
        k, v = (rows.double() for rows in forest.gather(forest.chains[request]))
        assert len(k) == shape.context
        for row in range(shape.rows_each):
            num_seen = shape.context - shape.rows_each + row + 1
            for head in range(4):
                q = forest.q[request * shape.rows_each + row, head].double()
                weights = torch.softmax(k[:num_seen, head // 2] @ q / 8**0.5, 0)
                expected = weights @ v[:num_seen, head // 2]
                torch.testing.assert_close(forest.reference(request)[row, head], expected)


def test_a_model_of_random_weights_needs_no_more_than_its_config(monkeypatch, tmp_path):
    """As the stage e2e makes it, and watches it."""
    for module in (jobs, random_llm):
        monkeypatch.setattr(module, "DRY", True)
    jobs.write_model(tmp_path)
    llm = random_llm.random_llm(tmp_path, max_batch_tokens=64)
    assert random_llm.watch_captures(llm) == []
    outputs = llm.generate([[1, 2, 3], [1, 2, 4]], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
    assert [len(output.outputs[0].token_ids) for output in outputs] == [2, 2]


def test_a_job_of_a_dry_run_has_the_structure_of_the_whole_one(monkeypatch):
    for name in jobs.JOBS:
        monkeypatch.setattr(jobs, "DRY", False)
        whole = jobs.requests(name)
        monkeypatch.setattr(jobs, "DRY", True)
        tiny = jobs.requests(name)
        assert len(tiny) <= 6 < len(whole)
        assert max(len(request.prompt_token_ids) for request in tiny) <= 50
        assert len({request.group for request in tiny}) == min(2, len({request.group for request in whole}))
