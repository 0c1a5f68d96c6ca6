"""The record of a job's steps has every second and every token once, in bounded memory."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

import batchllm.engine.recorder
import batchllm_ext as ext
from batchllm import LLM, LogitsRule, SamplingParams
from batchllm.engine.recorder import MAX_LEVELS, MAX_POINTS, RunRecorder, Timeline

pytestmark = pytest.mark.usefixtures("one_thread")

SYSTEM, HEADS = [5] * 8, [[9 + group] * 20 for group in range(3)]
PROMPTS = [SYSTEM + HEADS[group] + [50 + i] * 3 for i, group in enumerate([0, 1, 2, 0, 1, 0])]


@pytest.fixture(scope="module")
def llm(tiny_dir) -> LLM:
    return LLM(tiny_dir, dtype="float32", page_size=4, kv_cache_tokens=512, max_batch_tokens=16)


@pytest.fixture
def second_per_step(monkeypatch):
    """A clock that a second passes on between two looks at it."""
    seconds = itertools.count()
    monkeypatch.setattr(batchllm.engine.recorder, "time", SimpleNamespace(perf_counter=lambda: float(next(seconds))))


class Refuses(LogitsRule):
    def add(self, request):
        raise ValueError("not this one")


def params(n: int = 1, max_tokens: int = 5) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, n=n, ignore_eos=True)


def record(llm: LLM, prompts: list[list[int]], all_params: list[SamplingParams]) -> RunRecorder:
    recorder = RunRecorder()
    for _ in llm.generate_as_completed(prompts, all_params, recorder=recorder):
        pass
    return recorder


def test_every_step_and_token_is_recorded_once(llm):
    recorder = record(llm, PROMPTS, [params(n=2)] * len(PROMPTS))
    figures, stats = recorder.timeline.figures, llm.stats
    assert figures.steps == [1] * stats["steps"]
    assert sum(figures.prefill_tokens) == stats["computed_prompt_tokens"]
    first_tokens = stats["num_requests"]  # which prefill rows give
    assert sum(figures.decode_tokens) == stats["output_tokens"] - first_tokens
    assert 0 < max(figures.kv_tokens) <= stats["peak_kv_tokens"]
    assert figures.kv_tokens[-1] == 0
    assert recorder.progress.finished_requests == stats["num_requests"]
    assert recorder.progress.remaining_prompt_tokens == recorder.progress.remaining_output_tokens == 0


@pytest.mark.usefixtures("second_per_step")
def test_groups_share_the_seconds_of_a_step_by_rows(tiny_dir):
    llm = LLM(tiny_dir, dtype="float32")
    prompts = [HEADS[0] + [50 + i] for i in range(4)] + [HEADS[1] + [50 + i] * 3 for i in range(2)]
    recorder = record(llm, prompts, [params(max_tokens=3)] * 6)
    first, second = recorder.groups
    assert (first.requests, second.requests) == (4, 2)
    assert (first.prefix_tokens, second.prefix_tokens) == (20, 20)
    assert first.seconds == pytest.approx(24 / 50 + 2 * 4 / 6, abs=1e-5)
    assert second.seconds == pytest.approx(26 / 50 + 2 * 2 / 6, abs=1e-5)


@pytest.mark.usefixtures("second_per_step")
def test_the_prefill_of_a_request_is_its_groups_in_all_steps_that_it_takes(llm):
    prompts = [head + [50 + i] * 2 for head in HEADS[:2] for i in range(2)]  # 24 rows each, in steps of 16
    recorder = record(llm, prompts, [params(max_tokens=1)] * 4)
    assert recorder.timeline.figures.prefill_tokens == [16, 16, 16]
    assert [group.seconds for group in recorder.groups] == [1.5, 1.5]


def test_every_second_is_some_groups_where_every_request_is_in_one(llm):
    prompts = [[*head, 50 + i] for i in range(4) for head in HEADS]
    recorder = record(llm, prompts, [params()] * len(prompts))
    seconds = [group.seconds for group in recorder.groups]
    assert sum(seconds) == pytest.approx(sum(recorder.timeline.figures.seconds), abs=1e-4)
    assert seconds == sorted(seconds, reverse=True)


def test_levels_are_those_of_the_segments(llm):
    levels = record(llm, PROMPTS, [params()] * len(PROMPTS)).levels
    assert [(level.depth, level.segments, level.stored_tokens) for level in levels] == [(1, 1, 8), (2, 2, 40)]
    assert [level.saved_tokens for level in levels] == [8 * 5, 20 * 2 + 20 * 1]


def test_levels_beyond_a_limit_are_one():
    deepest, ids = MAX_LEVELS + 8, np.arange(MAX_LEVELS + 8, dtype=np.int32)  # a segment of 5 tokens below each other
    recorder = RunRecorder()
    recorder.added(0, ext.Segments(ids - 1, 5 * ids, 5 * ids + 5, ids, ids))
    levels = recorder.levels
    assert [level.segments for level in levels] == [1] * (MAX_LEVELS - 1) + [deepest - MAX_LEVELS + 1]
    assert sum(level.stored_tokens for level in levels) == 5 * deepest
    assert [level.max_readers for level in levels] == list(range(deepest, deepest - MAX_LEVELS, -1))


def test_waves_of_requests_are_counted_on(llm):
    recorder = RunRecorder()
    for _ in range(2):
        for _ in llm.generate_as_completed(PROMPTS, [params()] * len(PROMPTS), recorder=recorder):
            pass
    assert [(level.depth, level.segments) for level in recorder.levels] == [(1, 2), (2, 4)]
    assert sorted(group.request // len(PROMPTS) for group in recorder.groups) == [0, 1]


def test_a_job_that_stops_is_recorded_as_far_as_it_came_and_no_further(llm):
    recorder = RunRecorder()
    answers = llm.generate_as_completed(PROMPTS, [params(max_tokens=2 + i) for i in range(6)], recorder=recorder)
    next(answers)
    answers.close()
    steps = recorder.progress.steps
    assert 0 < recorder.progress.finished_requests < len(PROMPTS)
    for _ in llm.generate_as_completed(PROMPTS, [params()] * len(PROMPTS)):
        pass
    assert recorder.progress.steps == steps
    assert llm.engine.recorder is None


def test_a_job_that_is_refused_leaves_no_recorder(tiny_dir):
    llm = LLM(tiny_dir, dtype="float32", rules=[Refuses()])
    with pytest.raises(ValueError, match="request 0: not this one"):
        record(llm, [[5, 6]], [params()])
    assert llm.engine.recorder is None


@pytest.mark.parametrize("num_steps", [1, MAX_POINTS, MAX_POINTS + 1, 5 * MAX_POINTS + 3])
def test_a_timeline_is_bounded_and_loses_nothing(num_steps):
    timeline = Timeline()
    for step in range(num_steps):
        timeline.add(0.5, step % 7, step % 11, step)
    figures = timeline.figures
    assert min(num_steps, MAX_POINTS // 2) <= len(figures.steps) <= MAX_POINTS
    assert set(figures.steps[:-1]) <= {timeline.steps_per_point}
    assert sum(figures.steps) == num_steps
    assert sum(figures.seconds) == pytest.approx(0.5 * num_steps)
    assert sum(figures.decode_tokens) == sum(step % 7 for step in range(num_steps))
    assert sum(figures.prefill_tokens) == sum(step % 11 for step in range(num_steps))
    assert figures.kv_tokens == (np.cumsum(figures.steps) - 1).tolist(), "of each run of steps the most"
