"""The figures of a plan, on jobs small enough to be counted by hand."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import batchllm_ext as ext
from batchllm.estimate.crossover import shortest_shared_read, smallest_close_kv_tokens
from batchllm.estimate.job_plan import Assumptions, JobPlan, LevelFigures, plan_job
from batchllm.estimate.partition import ShardFigures
from batchllm.estimate.roofline import DEVICES
from batchllm.estimate.simulate import Policy, SimulatedJob, Simulation, simulate
from batchllm.estimate.tokenized_job import TokenizedJob
from batchllm.models.config import ModelConfig
from batchllm.reports.plan_text import NAMES, print_plan
from batchllm.reports.plot import plan_figure, save_plot
from tests.jobs.batch_lines import completion_line
from tests.jobs.plan_jobs import tokenized, two_documents, write_config


@pytest.fixture
def given_(tmp_path: Path) -> Assumptions:
    model = ModelConfig.from_directory(write_config(tmp_path))
    return Assumptions("tiny", model, DEVICES["h100"], 4096, expected_output_tokens=None, max_batch_tokens=2048)


def plan(job: TokenizedJob, assumptions: Assumptions) -> tuple[JobPlan, dict[Policy, Simulation]]:
    trie = ext.PrefixTrie(job.tokens, job.indptr, drop_last=1)
    return plan_job(job, trie, failed_lines=0, given=assumptions, log=lambda line: None)


def test_two_documents_are_counted_as_by_hand(tmp_path: Path, given_: Assumptions) -> None:
    # system 20 tokens x 6 readers; documents 100 and 60 x 3; questions 5 each; outputs 8 each
    made, _ = plan(tokenized(tmp_path / "in.jsonl", two_documents()), given_)
    assert (made.lines, made.requests, made.prompt_tokens) == (6, 6, 3 * 125 + 3 * 85)
    assert made.distinct_prompt_tokens == 20 + 160 + 6 * 5
    assert made.assumed_output_tokens == 6 * 8
    assert made.levels == [
        LevelFigures(depth=1, segments=1, median_readers=6, max_readers=6, stored_tokens=20, saved_tokens=100),
        LevelFigures(depth=2, segments=2, median_readers=3, max_readers=3, stored_tokens=160, saved_tokens=320),
    ]
    computed = {figures.policy: figures.computed_prompt_tokens for figures in made.policies}
    assert computed.keys() == set(Policy)
    assert computed[Policy.NONE] == 630
    assert computed[Policy.BATCHLLM] == computed[Policy.BATCHLLM_BLEND] == 210
    assert computed[Policy.BATCHLLM_SINGLE] == 120 + 80 + 6 * 5
    # blocks of 16: 7 of a's 120 shared tokens, 5 of b's 80, and 1 of the 20 that b shares with a
    assert computed[Policy.LRU] == computed[Policy.LRU_SORTED] == 125 + 2 * (125 - 112) + 85 - 16 + 2 * (85 - 80)
    ours = made.of(Policy.BATCHLLM)
    assert ours.steps == 8  # the prompts fit one step, which samples the first of 8 tokens
    assert ours.peak_kv_tokens == 16 * (2 + 7 + 4 + 6)  # each request's 5 + 7 own tokens fit a page
    assert ours.mean_batch_tokens == (210 + 7 * 6) / 8
    assert ours.median_batch_tokens == 6
    assert ours.saved_share == pytest.approx(420 / 630)
    assert (ours.preemptions, ours.evicted_tokens, ours.preempted_tokens) == (0, 0, 0)
    for figures in made.policies:
        parts = (figures.first_tokens, figures.unshared_tokens, figures.evicted_tokens, figures.preempted_tokens)
        assert figures.computed_prompt_tokens == sum(parts)
        assert figures.predicted_s > 0
    for crossover in made.caches:  # they share whole blocks only
        assert (crossover.kv_tokens, crossover.least_computed_prompt_tokens) == (None, computed[Policy.LRU])
    assert made.read.median_readers == 3


def test_expected_outputs_are_a_mean_within_each_limit(tmp_path: Path, given_: Assumptions) -> None:
    lines = [*two_documents(), completion_line("short", [5], max_tokens=2)]
    assumptions = dataclasses.replace(given_, expected_output_tokens=4)
    made, _ = plan(tokenized(tmp_path / "in.jsonl", lines), assumptions)
    assert made.assumed_output_tokens == 6 * 4 + 2
    assert made.of(Policy.BATCHLLM).steps == 4


def test_our_policies_learn_lengths_as_run_does(tmp_path: Path, given_: Assumptions) -> None:
    lines = [completion_line(str(i), [5] * 40 + [100 + i] * 10, max_tokens=400) for i in range(60)]
    job = tokenized(tmp_path / "in.jsonl", lines)
    made, _ = plan(job, dataclasses.replace(given_, kv_tokens=1600, expected_output_tokens=20))
    simulated = SimulatedJob(job.tokens, job.indptr, np.full(60, 20, np.int32), job.max_output_tokens)
    steps = {
        lengths: simulate(simulated, Policy.BATCHLLM, kv_tokens=1600, lengths=lengths).num_steps
        for lengths in ("learned", "bound", "known")
    }
    assert made.of(Policy.BATCHLLM).steps == steps["learned"]
    assert len(set(steps.values())) == 3


def test_with_less_memory_a_cache_computes_again_what_we_do_not(tmp_path: Path, given_: Assumptions) -> None:
    # Documents of 20 pages, asked in turns: only two of the eight fit beside what runs.
    lines = [
        completion_line(f"{document}-{question}", [document] * 320 + [100 + question] * 17, max_tokens=16)
        for question in range(8)
        for document in range(8)
    ]
    job = tokenized(tmp_path / "in.jsonl", lines)
    made, simulations = plan(job, dataclasses.replace(given_, kv_tokens=960))
    ours = made.of(Policy.BATCHLLM).computed_prompt_tokens
    assert ours == 8 * 320 + 64 * 17
    assert made.of(Policy.LRU).computed_prompt_tokens > 2 * ours
    assert made.of(Policy.LRU).evicted_tokens > ours
    as_submitted, in_order = made.caches
    assert as_submitted.kv_tokens is not None
    assert as_submitted.kv_tokens > 960
    assert in_order.kv_tokens is not None
    assert in_order.kv_tokens < as_submitted.kv_tokens <= as_submitted.largest_kv_tokens == 64 * 352
    assert all(simulation.peak_kv_tokens <= 960 for simulation in simulations.values())


MISTRAL = {"architectures": ["MistralForCausalLM"], "sliding_window": 32}
QWEN = {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 32, "max_window_layers": 2}


def with_model(given: Assumptions, directory: Path, changes: dict[str, Any], **others: Any) -> Assumptions:
    model = ModelConfig.from_directory(write_config(directory / "model", **changes))
    return dataclasses.replace(given, model=model, **others)


def test_a_window_needs_its_tokens_and_a_step_and_radix_is_left_out(tmp_path: Path, given_: Assumptions) -> None:
    # At most 31 tokens before the step, 15 that share a page with them and 64 of the step: 7 pages, of 200 + 7 tokens.
    job = tokenized(tmp_path / "in.jsonl", [completion_line("long", list(range(200)), max_tokens=8)])
    logged: list[str] = []
    small = with_model(given_, tmp_path, MISTRAL, kv_tokens=112, max_batch_tokens=64)
    trie = ext.PrefixTrie(job.tokens, job.indptr, drop_last=1)
    made, _ = plan_job(job, trie, failed_lines=0, given=small, log=logged.append)
    ours = made.of(Policy.BATCHLLM)
    assert (ours.steps, ours.peak_kv_tokens, ours.computed_prompt_tokens) == (4 + 7, 112, 200)
    assert {figures.policy for figures in made.policies} == set(Policy) - {Policy.RADIX_LPM, Policy.RADIX_DFS}
    assert "radix policies are left out: they keep all K/V, 208 tokens of the longest request" in logged
    assert [(cache.kv_tokens, cache.largest_kv_tokens) for cache in made.caches] == [(112, 208)] * 2
    text = printed(made)
    assert "all layers have a window of 32 tokens: K/V behind it is dropped (not by radix)" in text
    assert "radix, longest first" not in text
    with pytest.raises(ValueError, match="needs 7 KV pages"):
        plan(job, dataclasses.replace(small, kv_tokens=96))
    whole, _ = plan(job, dataclasses.replace(small, kv_tokens=208))
    assert {figures.policy for figures in whole.policies} == set(Policy)


def test_a_window_of_some_layers_saves_attention_alone(tmp_path: Path, given_: Assumptions) -> None:
    job = tokenized(tmp_path / "in.jsonl", [completion_line("long", list(range(200)), max_tokens=8)])
    no_weights = dataclasses.replace(
        DEVICES["h100"], flops_per_s=1.0, matmul_efficiency=1e30, bytes_per_s=1e30, step_overhead_s=0.0
    )
    one, all_ = (
        plan(job, with_model(given_, tmp_path / name, changes, device=no_weights))[0]
        for name, changes in (("one", QWEN), ("all", QWEN | {"use_sliding_window": False}))
    )
    seen = sum(range(1, 208)), sum(min(count, 32) for count in range(1, 208))  # by all 207 rows of a layer
    flops = 4 * 8 * 32 / no_weights.attention_efficiency
    assert one.of(Policy.BATCHLLM).predicted_s == pytest.approx(flops * (2 * seen[0] + seen[1]))
    assert all_.of(Policy.BATCHLLM).predicted_s == pytest.approx(flops * 3 * seen[0])
    assert one.of(Policy.BATCHLLM).peak_kv_tokens == all_.of(Policy.BATCHLLM).peak_kv_tokens == 208
    assert "some layers have a window of 32 tokens: others see all, so K/V is kept" in printed(one)
    assert "window" not in printed(all_)
    with pytest.raises(ValueError, match="needs 13 KV pages"):
        plan(job, with_model(given_, tmp_path, QWEN, kv_tokens=192))


def test_a_job_that_shares_nothing_is_said_to_share_nothing(tmp_path: Path, given_: Assumptions) -> None:
    lines = [completion_line(str(i), [i + 1] * 20, max_tokens=4) for i in range(4)]
    made, _ = plan(tokenized(tmp_path / "in.jsonl", lines), given_)
    assert made.levels == []
    assert {figures.computed_prompt_tokens for figures in made.policies} == {80}
    assert made.read.prefix_tokens is None
    text = printed(made)
    assert "nothing is shared" in text
    assert "0.0%" in text


@given(
    pages=st.integers(1, 2000),
    extra=st.integers(0, 2000),
    share=st.floats(-0.1, 1),
    page_size=st.sampled_from([1, 16]),
)
def test_the_smallest_close_memory_is_found_to_within_5_percent_in_few_simulations(
    pages: int, extra: int, share: float, page_size: int
) -> None:
    smallest, largest = pages * page_size, (pages + extra) * page_size
    enough = (pages + round(share * extra)) * page_size
    tried: list[int] = []

    def computed(kv_tokens: int) -> int:
        assert smallest <= kv_tokens <= largest
        assert kv_tokens % page_size == 0
        tried.append(kv_tokens)
        return 1009 if kv_tokens >= enough else 1011

    found = smallest_close_kv_tokens(computed, 1000, smallest, largest, page_size)
    if smallest >= enough:
        assert found == smallest
    else:
        assert enough <= found <= max(1.05 * enough, enough + page_size)
    assert len(tried) <= 11


def test_the_shortest_shared_read_is_where_bytes_are_equal(given_: Assumptions) -> None:
    model = given_.model
    # A layer: 8 heads of 32 dimensions and their lse in float32, written and read; 2 KV heads in bfloat16.
    state, kv = 2 * 8 * 33 * 4, 2 * 2 * 32 * 2
    for num_readers in (2, 3, 16, 1000):
        length = shortest_shared_read(model, num_readers)
        assert length is not None
        shared, separate = length * kv + num_readers * state, num_readers * length * kv
        assert shared < separate
        assert (length - 1) * kv + num_readers * state >= num_readers * (length - 1) * kv
    assert shortest_shared_read(model, 1) is None


def printed(made: JobPlan, width: int = 140) -> str:
    text = io.StringIO()
    print_plan(Console(file=text, width=width), made)
    return text.getvalue()


def test_what_is_printed_has_every_policy_and_calls_predictions_so(tmp_path: Path, given_: Assumptions) -> None:
    made, _ = plan(tokenized(tmp_path / "in.jsonl", two_documents()), given_)
    text = printed(made)
    assert all(name in text for name in NAMES.values())
    assert "6 requests, 630 prompt tokens, 210 of them distinct" in text
    assert "assumed: each request generates the limit of its line: 48 output tokens" in text
    assert "assumed: tiny on H100 80GB SXM" in text
    assert "4,096 tokens" in text
    assert "(model)" in text
    assert "predicted KV peak 304 tokens" in text
    assert "with any KV memory, 9.5% more prompt tokens than BatchLLM" in text  # 230 to 210
    assert "at 3 readers" in text
    assert "Shards" not in text


def test_what_is_printed_shows_markup_in_names_as_it_is(tmp_path: Path, given_: Assumptions) -> None:
    made, _ = plan(tokenized(tmp_path / "in.jsonl", two_documents()), dataclasses.replace(given_, model_name="[b]m"))
    figures = ShardFigures("out[1]/shard-0001-of-0001.jsonl", 6, 6, 630, 210, 0, 48, 0.001)
    text = printed(msgspec.structs.replace(made, shards=[figures]))
    assert "assumed: [b]m on" in text
    assert "Shards in out[1]" in text
    assert "shard-0001-of-0001.jsonl" in text


def test_the_plot_draws_every_policy_in_both_panels(tmp_path: Path, given_: Assumptions) -> None:
    made, simulations = plan(tokenized(tmp_path / "in.jsonl", two_documents()), given_)
    figure = plan_figure(made, simulations)
    batch, memory = figure.axes
    ours = next(line for line in batch.get_lines() if line.get_label() == NAMES[Policy.BATCHLLM])
    assert np.array_equal(ours.get_ydata(), [210] + [6] * 7)
    for axes in (batch, memory):
        assert {line.get_label() for line in axes.get_lines()} >= set(NAMES.values())
        assert "simulated" in axes.get_ylabel()
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(NAMES.values())
    for suffix, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        save_plot(tmp_path / f"plot{suffix}", made, simulations)
        assert (tmp_path / f"plot{suffix}").read_bytes().startswith(magic)


def test_a_long_job_is_drawn_with_few_points_that_keep_its_mean(tmp_path: Path, given_: Assumptions) -> None:
    lines = [completion_line("long", [5] * 20, max_tokens=1000), completion_line("short", [6] * 20, max_tokens=2)]
    made, simulations = plan(tokenized(tmp_path / "in.jsonl", lines), given_)
    for line in plan_figure(made, simulations).axes[0].get_lines():
        assert line.get_xdata().tolist() == list(range(0, 1000, 4))
        assert line.get_ydata()[0] == (40 + 2 + 1 + 1) / 4
        assert line.get_ydata()[-1] == 1
