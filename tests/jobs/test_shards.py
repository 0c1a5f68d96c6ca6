"""Shards of a batch file: every line once, unchanged, balanced by what they cost."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import batchllm_ext as ext
from batchllm.estimate.partition import ShardFigures
from batchllm.estimate.roofline import DEVICES
from batchllm.estimate.tokenized_job import TokenizedJob
from batchllm.jobs.depth_first import depth_first
from batchllm.jobs.line import BatchRequest
from batchllm.jobs.shards import LineSequence, request_costs, shard_paths, write_shards
from batchllm.models.config import ModelConfig
from tests.jobs.batch_lines import completion_line, read_records, read_source, write_lines
from tests.jobs.plan_jobs import tokenized, tokenized_file, two_documents, write_config

DEVICE = DEVICES["h100"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig.from_directory(write_config(tmp_path_factory.mktemp("model")))


def shard(path: Path, job: TokenizedJob, num_shards: int, model: ModelConfig) -> list[ShardFigures]:
    trie = ext.PrefixTrie(job.tokens, job.indptr, drop_last=1)
    directory = path.parent / "shards"
    outputs = job.max_output_tokens
    return write_shards(path, directory, num_shards, job, trie, outputs, model, DEVICE, overwrite=True)


def distinct_tokens(prompts: list[list[int]]) -> int:
    """What is computed of prompts that share all they can: each prefix once, and each prompt's last token."""
    return len({tuple(ids[:end]) for ids in prompts for end in range(1, len(ids))}) + len(prompts)


def random_lines(rng: np.random.Generator, num_lines: int, prompts_a_line: int = 1) -> list[dict[str, Any]]:
    def prompt() -> list[int]:
        return [7] * 5 + rng.integers(1, 4, rng.integers(1, 9)).tolist()

    return [
        completion_line(str(i), [prompt() for _ in range(rng.integers(1, prompts_a_line + 1))], max_tokens=3)
        for i in range(num_lines)
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), num_lines=st.integers(1, 20), data=st.data())
def test_every_line_is_in_one_shard_and_the_figures_are_those_of_its_prompts(
    tmp_path: Path, model: ModelConfig, seed: int, num_lines: int, data: st.DataObject
) -> None:
    lines = random_lines(np.random.default_rng(seed), num_lines)
    path = tmp_path / "in.jsonl"
    job = tokenized(path, lines)
    num_shards = data.draw(st.integers(1, num_lines))
    figures = shard(path, job, num_shards, model)
    texts = [Path(f.file).read_bytes().splitlines(keepends=True) for f in figures]
    assert sorted(itertools.chain(*texts)) == sorted(path.read_bytes().splitlines(keepends=True))
    for f in figures:
        prompts = [record["body"]["prompt"][0] for record in read_records(Path(f.file))]
        assert f.lines == f.requests == len(prompts) > 0
        assert f.prompt_tokens == sum(map(len, prompts))
        assert f.computed_prompt_tokens == distinct_tokens(prompts)
        assert f.output_tokens == 3 * len(prompts)
    whole = distinct_tokens([line["body"]["prompt"][0] for line in lines])
    assert sum(f.computed_prompt_tokens - f.replicated_tokens for f in figures) == whole


def test_a_shard_replicates_the_path_of_ancestors_where_its_cut_falls(tmp_path: Path, model: ModelConfig) -> None:
    path = tmp_path / "in.jsonl"
    job = tokenized(path, random_lines(np.random.default_rng(3), 300))
    trie = ext.PrefixTrie(job.tokens, job.indptr, drop_last=1)
    figures = shard(path, job, 7, model)
    cuts = np.cumsum([f.lines for f in figures])[:-1]
    paths = [int(trie.token_end[(trie.request_begin < cut) & (cut < trie.request_end)].max()) for cut in cuts]
    assert [f.replicated_tokens for f in figures] == [0, *paths]
    assert min(paths) >= 5  # all share the root's 5 tokens; the cuts fall below it


def test_a_job_under_one_system_prompt_is_balanced_below_it(tmp_path: Path, model: ModelConfig) -> None:
    rng = np.random.default_rng(5)
    lines = [
        completion_line(f"{document}-{question}", [9] * 400 + [document] * 300 + rng.integers(100, 900, 40).tolist())
        for document in range(10, 22)
        for question in range(10)
    ]
    rng.shuffle(lines)
    path = tmp_path / "in.jsonl"
    figures = shard(path, tokenized(path, lines), 4, model)
    seconds = [f.predicted_s for f in figures]
    assert max(seconds) < 1.02 * min(seconds)
    assert [f.lines for f in figures] == [30] * 4
    assert [f.replicated_tokens for f in figures] == [0, 400, 400, 400]  # no document is cut


def test_lines_keep_their_bytes(tmp_path: Path, model: ModelConfig) -> None:
    made = [json.dumps(line).encode() for line in two_documents()]
    made[0] = b"\xef\xbb\xbf" + made[0] + b"\r"  # as Windows writes them
    made[1] = made[1].replace(b'"max_tokens"', b'"user": "Zo\xc3\xab", \t "max_tokens"')
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n\n".join(made))  # blank lines between, no newline at the end
    figures = shard(path, tokenized_file(path), 2, model)
    texts = [line for f in figures for line in Path(f.file).read_bytes().splitlines(keepends=True)]
    assert sorted(texts) == sorted(line.removeprefix(b"\xef\xbb\xbf") + b"\n" for line in made)
    for f in figures:
        assert [type(line) for line in read_source(Path(f.file))] == [BatchRequest] * f.lines


def test_documents_stay_together(tmp_path: Path, model: ModelConfig) -> None:
    path = tmp_path / "in.jsonl"
    figures = shard(path, tokenized(path, two_documents()), 2, model)
    names = [[record["custom_id"] for record in read_records(Path(f.file))] for f in figures]
    assert names == [["a0", "a1", "a2"], ["b0", "b1", "b2"]]
    assert [Path(f.file).name for f in figures] == ["shard-0001-of-0002.jsonl", "shard-0002-of-0002.jsonl"]
    assert [f.prompt_tokens for f in figures] == [3 * 125, 3 * 85]
    assert [f.computed_prompt_tokens for f in figures] == [120 + 15, 80 + 15]
    assert [f.replicated_tokens for f in figures] == [0, 20]
    assert [f.output_tokens for f in figures] == [24, 24]


def test_a_line_of_several_prompts_is_never_cut(tmp_path: Path, model: ModelConfig) -> None:
    lines = random_lines(np.random.default_rng(8), 30, prompts_a_line=4)
    for line in lines[::3]:
        line["body"]["n"] = 2
    path = tmp_path / "in.jsonl"
    job = tokenized(path, lines)
    figures = shard(path, job, 5, model)
    assert sum(f.lines for f in figures) == 30
    assert sum(f.requests for f in figures) == job.num_requests
    for f in figures:
        bodies = [record["body"] for record in read_records(Path(f.file))]
        prompts = [ids for body in bodies for ids in body["prompt"] for _ in range(body.get("n", 1))]
        assert f.requests == len(prompts)
        assert f.prompt_tokens == sum(map(len, prompts))
        assert distinct_tokens(prompts) <= f.computed_prompt_tokens <= f.prompt_tokens
    shareable = [
        min(ids[:-1] for ids in record["body"]["prompt"]) for f in figures for record in read_records(Path(f.file))
    ]
    assert shareable == sorted(shareable)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, [99] * 3),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 4}, [4] * 3),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "use_sliding_window": True,
                "sliding_window": 5,
                "max_window_layers": 2,
            },
            [99, 99, 5],
        ),
    ],
)
def test_a_prefix_costs_its_flops_once_and_an_output_token_what_it_reads(
    tmp_path: Path, changes: dict[str, Any], windows: list[int]
) -> None:
    model = ModelConfig.from_directory(write_config(tmp_path / "model", **changes))
    job = tokenized(tmp_path / "in.jsonl", random_lines(np.random.default_rng(2), 20))
    lines = LineSequence.of(job, depth_first(job))
    costs = request_costs(job, lines, job.max_output_tokens, model, DEVICE)

    flops_per_s = DEVICE.flops_per_s * DEVICE.matmul_efficiency
    bytes_per_s = DEVICE.bytes_per_s * DEVICE.bandwidth_efficiency

    def num_seen(position: int) -> int:  # in all layers
        return sum(min(position + 1, window) for window in windows)

    def flops_s(position: int) -> float:
        pairs_s = 4 * 8 * 32 * num_seen(position) / (DEVICE.flops_per_s * DEVICE.attention_efficiency)
        return 2 * model.num_linear_parameters / flops_per_s + pairs_s

    prompts = [job.prompt(request).tolist() for request in range(job.num_requests)]
    prefixes = {tuple(ids[:end]) for ids in prompts for end in range(1, len(ids))}
    expected = sum(flops_s(len(prefix) - 1) for prefix in prefixes)
    for ids, outputs in zip(prompts, job.max_output_tokens, strict=True):
        expected += flops_s(len(ids) - 1) + outputs * 2 * model.num_logit_parameters / flops_per_s
        for position in range(len(ids), len(ids) + outputs - 1):
            expected += flops_s(position) + num_seen(position) * 2 * 2 * 32 * 2 / bytes_per_s
    assert costs.seconds.sum() == pytest.approx(expected, rel=1e-9)
    paths = [sum(flops_s(position) for position in range(shared)) for shared in lines.shared_tokens]
    assert costs.path_seconds == pytest.approx(paths, rel=1e-9)


def test_more_shards_than_lines_are_refused_before_anything_is_written(tmp_path: Path, model: ModelConfig) -> None:
    path = tmp_path / "in.jsonl"
    job = tokenized(path, two_documents())
    with pytest.raises(ValueError, match="num_shards: expected 1 to 6, the number of items, got 7"):
        shard(path, job, 7, model)
    assert not (tmp_path / "shards").exists()


def test_shards_that_exist_are_replaced(tmp_path: Path, model: ModelConfig) -> None:
    path = write_lines(tmp_path / "in.jsonl", [])
    (tmp_path / "shards").mkdir()
    old = shard_paths(tmp_path / "shards", 1)[0]
    old.write_text("old" * 1000)
    shard(path, tokenized(path, two_documents()), 1, model)
    assert len(read_source(old)) == 6
