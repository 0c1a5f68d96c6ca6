"""`batchllm plan`, as a person calls it."""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from batchllm.cli import app
from batchllm.cli.option_types import memory_size
from batchllm.cli.plan_batch_file import KV_SHARE
from batchllm.device.cpu_rates import CpuRates, MeasuredRates
from batchllm.estimate.roofline import DEVICES
from batchllm.models.config import ModelConfig, resolve_model
from tests.engine import tiny
from tests.jobs.batch_lines import chat_line, completion_line, read_records, write_lines
from tests.jobs.plan_jobs import two_documents, write_config

DOCUMENTS = Path(__file__).resolve().parents[2] / "examples" / "documents.jsonl"


def call(*args: object) -> Result:
    return CliRunner().invoke(app, ["plan", *(str(arg) for arg in args)])


def planned(*args: object, folder: Path, exit_code: int = 0) -> dict[str, Any]:
    """The figures, from --json."""
    result = call(*args, "--json", folder / "plan.json", "--overwrite")
    assert result.exit_code == exit_code, result.output
    return dict(json.loads((folder / "plan.json").read_text()))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path / "model")


@pytest.fixture
def this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of products of 8 bits it makes twice as many, and bfloat16 is what it has dot products of."""

    def rates(dtype: torch.dtype, quantize: str | None, num_threads: int) -> MeasuredRates:
        product_flops_per_s = 4e11 if quantize else 2e11
        return MeasuredRates(CpuRates(product_flops_per_s, 2e10, 1e11), was_quiet=True)

    monkeypatch.setattr("batchllm.device.cpu_rates.cpu_rates", rates)
    monkeypatch.setattr("batchllm.device.choice.cpu_has_bf16_dot", lambda: True)
    monkeypatch.setattr("batchllm.device.kv_cache.available_memory_bytes", lambda: 8 << 30)


@pytest.fixture
def in_jsonl(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", two_documents())


def test_the_example_is_planned_drawn_and_cut(this_cpu: None, smollm2: Path, tmp_path: Path) -> None:
    outputs = ["--plot", tmp_path / "plot.svg", "--json", tmp_path / "plan.json", "--shards", 4, "-o", tmp_path / "to"]
    result = call(DOCUMENTS, "--model", smollm2, "--device", "cpu", "--kv-memory", "512MiB", *outputs)
    assert result.exit_code == 0, result.output
    assert "64 requests, 87,364 prompt tokens" in result.stdout
    assert "BatchLLM, one level" in result.stdout
    assert "shard-0004-of-0004.jsonl" in result.stdout
    assert "simulating batchllm" in result.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    policies = {figures["policy"]: figures for figures in plan["policies"]}
    assert policies["batchllm"]["computed_prompt_tokens"] == 11_953  # as `batchllm run` computes, see README.md
    assert policies["none"]["computed_prompt_tokens"] == 87_364
    assert (tmp_path / "plot.svg").stat().st_size > 10_000
    shards = [path.read_bytes().splitlines() for path in sorted((tmp_path / "to").iterdir())]
    assert len(shards) == 4
    assert sorted(line for shard in shards for line in shard) == sorted(DOCUMENTS.read_bytes().splitlines())


def test_token_ids_need_only_a_config(config: Path, in_jsonl: Path, tmp_path: Path) -> None:
    for model in (config, config.parent):
        plan = planned(in_jsonl, "--model", model, folder=tmp_path)
        assert (plan["prompt_tokens"], plan["model"], plan["device"]) == (630, "model", DEVICES["h100"].name)


@pytest.mark.parametrize(
    "changes", [{"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]}, {"hidden_act": "gelu"}], ids=str
)
def test_what_runs_the_model_is_said(config: Path, in_jsonl: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    native = call(in_jsonl, "--model", config)
    assert "runs by backend" not in native.stderr
    assert planned(in_jsonl, "--model", config, folder=tmp_path)["backend"] == "native"
    settings = json.loads(config.read_text()) | changes
    config.write_text(json.dumps(settings))
    assert f"{settings['architectures'][0]} runs by backend transformers" in call(in_jsonl, "--model", config).stderr
    assert planned(in_jsonl, "--model", config, folder=tmp_path)["backend"] == "transformers"
    refused = call(in_jsonl, "--model", config, "--backend", "native")
    assert refused.exit_code == 1
    assert f"{config}: " in refused.stderr


def test_of_a_model_on_the_hub_no_weights_are_fetched(
    config: Path, in_jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[list[str]] = []

    def snapshot_download(model: str, *, allow_patterns: list[str]) -> str:
        assert model == "some/model-8b"
        fetched.append(allow_patterns)
        return str(config.parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert planned(in_jsonl, "--model", "some/model-8b", folder=tmp_path)["model"] == "model-8b"
    assert resolve_model("some/model-8b") == config.parent
    plans, runs = fetched
    assert sorted({*plans, "*.safetensors"}) == sorted(runs)
    assert "*.safetensors" not in plans


def test_text_without_a_tokenizer_is_one_sentence(config: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", [completion_line("a", [1, 2]), completion_line("b", "text"), chat_line("c")])
    result = call(tmp_path / "in.jsonl", "--model", config)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"batchllm: {config.parent}: no tokenizer beside config.json, and 2 of 3 lines are text (first: line 2); only "
        "prompts of token ids can be planned without one"
    )


@pytest.mark.parametrize(
    ("family", "kv_cache_tokens"),
    [
        ("llama", 400),  # not all fit at once
        ("mistral-window", 400),
        ("mistral-window", 128),  # fewer tokens than each request has
        ("qwen2-window", 400),  # one layer of two has a window
    ],
)
def test_a_plan_foresees_what_run_does(tmp_path: Path, family: str, kv_cache_tokens: int) -> None:
    model = tiny.save(tiny.FAMILIES[family].model(), tmp_path / "tiny")
    tiny.save_tokenizer(model)
    document = "Once upon a time there was a tiny model. " * 3
    lines = [
        *(chat_line(f"chat{i}", f"{document}{i}?", max_tokens=5 + i, ignore_eos=True) for i in range(4)),
        completion_line("texts", [document, f"{document}And so"], n=2, max_tokens=9, ignore_eos=True),
        completion_line("default limit", document, ignore_eos=True),
    ]
    in_jsonl = write_lines(tmp_path / "in.jsonl", lines)
    options = ["--model", model, "--kv-cache-tokens", kv_cache_tokens, "--max-batch-tokens", 64]
    plan = planned(in_jsonl, *options, folder=tmp_path)
    foreseen = next(figures for figures in plan["policies"] if figures["policy"] == "batchllm")
    run = ["run", in_jsonl, "-o", tmp_path / "out.jsonl", "--json-summary", tmp_path / "summary.json", *options]
    result = CliRunner().invoke(app, [str(arg) for arg in run])
    assert result.exit_code == 0, result.output
    stats = json.loads((tmp_path / "summary.json").read_text())["stats"]
    assert plan["kv_tokens"] == kv_cache_tokens
    assert plan["prompt_tokens"] == stats["prompt_tokens"]
    assert plan["assumed_output_tokens"] == stats["output_tokens"]
    for name in ("computed_prompt_tokens", "steps", "preemptions", "peak_kv_tokens"):
        assert foreseen[name] == stats[name], name


def test_lines_that_cannot_run_are_reported_and_left_out(config: Path, tmp_path: Path) -> None:
    lines = [*two_documents(), b"{", completion_line("a0", [5]), completion_line("alien", [1000])]
    lines += [completion_line("long", [5] * 4096), completion_line("large", [5] * 990, max_tokens=40)]
    in_jsonl, errors = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "errors.jsonl"
    shards = ["--shards", 1, "-o", tmp_path / "to"]
    options = ["--model", config, "--kv-cache-tokens", 1024, "--errors", errors, *shards]
    plan = planned(in_jsonl, *options, folder=tmp_path, exit_code=3)
    assert (plan["lines"], plan["failed_lines"]) == (6, 5)
    codes = {record["error"]["line"]: record["error"]["code"] for record in read_records(errors)}
    assert codes == {7: "invalid_json_line", 8: "duplicate_custom_id"} | dict.fromkeys((9, 10, 11), "invalid_prompt")
    ids = {record["custom_id"] for record in read_records(tmp_path / "to" / "shard-0001-of-0001.jsonl")}
    assert ids == {"a0", "a1", "a2", "b0", "b1", "b2"}
    result = call(in_jsonl, *options, "--overwrite")
    assert "6 lines (5 more cannot run), 6 requests" in result.stdout
    stderr = result.stderr
    assert "line 9: body.prompt: prompt_token_ids[0] is 1000, but the vocabulary has 1000 tokens" in stderr
    assert "line 11: body.prompt: the request needs 65 KV pages of 16 tokens" in stderr


def test_only_the_first_bad_lines_are_shown(config: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", [completion_line("a", [1]), *[b"{"] * 12])
    result = call(tmp_path / "in.jsonl", "--model", config)
    assert result.exit_code == 3
    assert result.stderr.count("EOF") + result.stderr.count("truncated") == 10
    assert "... and 2 more lines that cannot run" in result.stderr


def test_a_job_without_a_line_that_could_run_is_no_job(config: Path, tmp_path: Path) -> None:
    for lines in ([], [b"{"]):
        result = call(write_lines(tmp_path / "in.jsonl", lines), "--model", config)
        assert result.exit_code == 1
        assert "no line that could run" in result.stderr


def test_kv_memory_is_what_was_said_or_what_the_weights_leave(config: Path, in_jsonl: Path, tmp_path: Path) -> None:
    model, per_page = ModelConfig.from_directory(config), 16 * 2 * 3 * 2 * 32 * 2
    said = planned(in_jsonl, "--model", config, "--kv-memory", "4MiB", folder=tmp_path)
    assert said["kv_tokens"] == 4 * 2**20 // per_page * 16
    said = planned(in_jsonl, "--model", config, "--kv-cache-tokens", 1000, folder=tmp_path)
    assert said["kv_tokens"] == 992
    for name, device in DEVICES.items():
        default = planned(in_jsonl, "--model", config, "--device", name, folder=tmp_path)
        assert default["kv_tokens"] == int(KV_SHARE * (device.memory_bytes - model.weight_bytes)) // per_page * 16


def test_8_bits_leave_more_memory_and_take_less_time(
    this_cpu: None, config: Path, in_jsonl: Path, tmp_path: Path
) -> None:
    options = (in_jsonl, "--model", config, "--device", "cpu")
    plain = planned(*options, folder=tmp_path)
    quantized = planned(*options, "--quantize", "int8", folder=tmp_path)
    assert quantized["device"] != plain["device"]
    assert quantized["kv_tokens"] > plain["kv_tokens"]
    assert quantized["policies"][0]["predicted_s"] < plain["policies"][0]["predicted_s"]
    assert ", int8, threads: " in quantized["device"]
    assert "(measured here: products 400 GFLOP/s, " in quantized["device"]
    result = call(in_jsonl, "--model", config, "--quantize", "int8")
    assert result.exit_code == 1
    assert "quantize: 'int8' is for a CPU, and device is 'h100'" in result.stderr


def test_a_config_without_a_length_is_named(in_jsonl: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "model", max_position_embeddings=None)
    result = call(in_jsonl, "--model", config)
    assert result.exit_code == 1
    assert f"{config}: max_position_embeddings: expected a positive integer, got None" in result.stderr


def test_weights_that_do_not_fit_the_device_ask_for_the_memory(in_jsonl: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "large", hidden_size=32768, intermediate_size=131072, num_hidden_layers=100)
    result = call(in_jsonl, "--model", config, "--device", "a100")
    assert result.exit_code == 1
    assert "do not hold the model's weights" in result.stderr
    assert "--kv-memory" in result.stderr


def test_assumptions_are_options(config: Path, tmp_path: Path) -> None:
    in_jsonl = write_lines(tmp_path / "in.jsonl", [completion_line("a", [1], max_tokens=30), completion_line("b", [2])])
    plan = planned(in_jsonl, "--model", config, folder=tmp_path)
    assert plan["assumed_output_tokens"] == 30 + 16
    plan = planned(in_jsonl, "--model", config, "--expected-output-tokens", 20, folder=tmp_path)
    assert plan["assumed_output_tokens"] == 20 + 16


def test_a_chat_without_a_limit_is_bounded_as_by_run(smollm2: Path, tmp_path: Path) -> None:
    in_jsonl = write_lines(tmp_path / "in.jsonl", [chat_line("a")])
    assert planned(in_jsonl, "--model", smollm2, folder=tmp_path)["assumed_output_tokens"] == 256
    plan = planned(in_jsonl, "--model", smollm2, "--max-tokens", 9, folder=tmp_path)
    assert plan["assumed_output_tokens"] == 9


@pytest.mark.parametrize(
    ("size", "num_bytes"),
    [("40GiB", 40 * 2**30), ("512MiB", 512 * 2**20), ("12GB", 12 * 10**9), ("1.5 KiB", 1536), ("7B", 7), ("2TB", 2e12)],
)
def test_sizes_have_units(size: str, num_bytes: int) -> None:
    assert memory_size(size) == num_bytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kv-memory", "40"], "expected a size such as 40GiB, 512MiB or 12GB, got '40'"),
        (["--kv-memory", "40gib"], "expected a size"),
        (["--kv-memory", "0GiB"], "expected a size"),
        (["--kv-memory", "-1GiB"], "expected a size"),
        (["--kv-memory", "1GiB", "--kv-cache-tokens", "5"], "not both"),
        (["--shards", "2"], "go together"),
        (["-o", "to"], "go together"),
        (["--shards", "0", "-o", "to"], "--shards"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_wrong_usage_is_exit_status_2(config: Path, in_jsonl: Path, options: list[str], message: str) -> None:
    result = call(in_jsonl, "--model", config, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())  # a box wraps it


def test_a_plot_without_matplotlib_is_refused_with_the_way_to_get_it(
    config: Path, in_jsonl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = call(in_jsonl, "--model", config, "--plot", in_jsonl.with_name("plot.png"))
    assert result.exit_code == 1
    assert "plot.png' is a figure, which needs matplotlib: pip install 'batchllm-ext[plot]'\n" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--plot plot.bmp", "plot 'plot.bmp': expected a name that ends in .png, .svg, .pdf"),
        ("--plot plot", "expected a name that ends in"),
        ("--json in.jsonl", "json 'in.jsonl': is the input file"),
        ("--errors in.jsonl", "errors 'in.jsonl': is the input file"),
        ("--plot nowhere/plot.png", "no such directory 'nowhere'"),
        ("--json a.json --errors a.json", "json 'a.json': is the errors file"),
        ("--shards 2 -o in.jsonl", "shards 'in.jsonl': is a file, not a directory"),
        ("--shards 2 -o nowhere/to", "shards 'nowhere/to': no such directory 'nowhere'"),
        ("--shards 7 -o to", "shards: expected at most 6, the lines that can run, got 7"),
        ("--shards 2 -o shards", "shard-0002-of-0002.jsonl': is the input file"),
        ("--kv-cache-tokens 15", "KV memory: expected at least one page (16 tokens), got 15 tokens"),
        ("--model nowhere", "model 'nowhere': no such directory"),
    ],
)
def test_a_plan_that_cannot_be_made_is_exit_status_1_and_changes_nothing(
    config: Path, in_jsonl: Path, monkeypatch: pytest.MonkeyPatch, options: str, message: str
) -> None:
    monkeypatch.chdir(in_jsonl.parent)
    Path("shards").mkdir()
    Path("shards/shard-0002-of-0002.jsonl").symlink_to(in_jsonl)
    data = in_jsonl.read_bytes()
    model = [] if "--model" in options else ["--model", config]
    result = call("in.jsonl", *model, *options.split())
    assert result.exit_code == 1, result.output
    assert message in result.stderr.splitlines()[-1]
    assert in_jsonl.read_bytes() == data
    assert {path.name for path in Path().iterdir()} == {"in.jsonl", "model", "shards"}


def test_nothing_of_a_line_or_a_name_is_obeyed_by_a_terminal(config: Path, tmp_path: Path) -> None:
    lines = [completion_line("a", [1]), chat_line("b\x1b[2J", temperature="\x1b[2J"), chat_line("c", **{"\x1b[2J": 1})]
    lines.append(completion_line("d\x07", [1], stop=[{"\x9b": 1}]))
    in_jsonl = write_lines(tmp_path / "in\x1b]0;title\x07.jsonl", lines)
    result = call(in_jsonl, "--model", config, "--shards", 1, "-o", tmp_path / "[red]to\x1b[2J")
    assert result.exit_code == 3
    assert r"reading" in result.stderr
    assert r"in\x1b]0;title\x07.jsonl" in result.stderr
    assert r"body.\x1b[2J: not supported" in result.stderr
    assert r"[red]to\x1b[2J" in result.stdout
    shown = result.stdout + result.stderr
    assert {c for c in shown if not c.isprintable()} == {"\n"}


def test_what_holds_something_is_replaced_only_if_asked(
    config: Path, in_jsonl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(in_jsonl.parent)
    names = ("plot.png", "plan.json", "errors.jsonl", "shards/shard-0002-of-0002.jsonl")
    outputs = ["--plot", "plot.png", "--json", "plan.json", "--errors", "errors.jsonl", "--shards", "2", "-o", "shards"]
    Path("shards").mkdir()
    for name in names:
        for other in (*names, "shards/shard-0001-of-0002.jsonl"):
            Path(other).write_text("old" if other == name else "")
        result = call("in.jsonl", "--model", config, *outputs)
        assert result.exit_code == 1
        assert f"{name}': exists and is not empty" in result.stderr
        assert "reading" not in result.stderr
        assert [Path(other).read_text() for other in names] == ["old" if other == name else "" for other in names]
        assert call("in.jsonl", "--model", config, *outputs, "--overwrite").exit_code == 0
        assert "old" not in [Path(other).read_bytes()[:3] for other in names]


def test_a_plan_of_a_pipe_is_that_of_the_file(config: Path, in_jsonl: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    options = ["--model", config, "--shards", 2, "-o", tmp_path / "to"]
    of_file = planned(in_jsonl, *options, folder=tmp_path)
    shards = [path.read_bytes() for path in sorted((tmp_path / "to").iterdir())]
    writer = threading.Thread(target=pipe.write_bytes, args=(in_jsonl.read_bytes(),))
    writer.start()
    assert planned(pipe, *options, folder=tmp_path) == of_file
    writer.join()
    assert [path.read_bytes() for path in sorted((tmp_path / "to").iterdir())] == shards


def test_a_missing_input_is_named_before_the_model_is_looked_at(tmp_path: Path) -> None:
    result = call(tmp_path / "none.jsonl", "--model", "/nowhere")
    assert result.stderr == f"batchllm: input '{tmp_path / 'none.jsonl'}': no such file\n"


def test_an_interrupted_plan_is_exit_status_130(config: Path, in_jsonl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("batchllm.estimate.job_plan.simulate", interrupt)
    result = call(in_jsonl, "--model", config)
    assert result.exit_code == 130
    assert result.stderr.endswith("batchllm: interrupted\n")


@pytest.mark.parametrize("directory", ["new", "old"])
def test_a_directory_that_takes_no_shards_is_refused(
    config: Path, in_jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str
) -> None:
    (tmp_path / "old").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)  # root may write anywhere
    result = call(in_jsonl, "--model", config, "--shards", 2, "-o", tmp_path / directory)
    assert result.exit_code == 1
    assert f"{tmp_path / directory}" in result.stderr
    assert "not writable" in result.stderr


def test_keys_and_values_have_the_dtype_that_runs_not_that_of_the_checkpoint(
    this_cpu: None, config: Path, in_jsonl: Path, tmp_path: Path
) -> None:
    per_token = 2 * 3 * 2 * 32  # elements: K and V of three layers, 2 heads of 32
    cpu = (in_jsonl, "--model", config, "--device", "cpu", "--kv-memory", "3MiB")
    for checkpoint in ("bfloat16", "float32"):
        write_config(config.parent, torch_dtype=checkpoint)
        of_dtype = {
            dtype: planned(*cpu, "--dtype", dtype, folder=tmp_path) for dtype in ("auto", "bfloat16", "float32")
        }
        bytes_per_token = {dtype: plan["kv_bytes_per_token"] for dtype, plan in of_dtype.items()}
        assert bytes_per_token == {"auto": 2 * per_token, "bfloat16": 2 * per_token, "float32": 4 * per_token}
        assert of_dtype["float32"]["kv_tokens"] == (3 << 20) // (4 * per_token) // 16 * 16
        assert planned(in_jsonl, "--model", config, folder=tmp_path)["kv_bytes_per_token"] == 2 * per_token
