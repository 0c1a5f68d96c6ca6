"""Lines that are read in slices are those that are read in one go."""

import random
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batchllm.integrations.ray_data import reading
from batchllm.integrations.ray_data.reader import WeightlessReader
from batchllm.integrations.ray_data.reading import is_large, read_on_cluster
from batchllm.jobs.earlier import EarlierRuns
from batchllm.jobs.job_prompts import JobPrompts
from batchllm.jobs.line import LineError
from batchllm.jobs.run import RunOptions, read_prompts
from batchllm.jobs.sources import Ask, OpenAIBatch, open_source
from batchllm.options import EngineOptions
from batchllm.sampling_params import SamplingParams
from tests.integrations.ray.here import HereReplicas
from tests.jobs.batch_lines import chat_line, completion_line, write_lines
from tests.jobs.plan_jobs import write_config

OPTIONS = RunOptions(model_name="m", chat_max_tokens=9, seed=3)
LINES: list[dict[str, Any] | bytes] = [
    completion_line("a", "first", max_tokens=3),
    b"not json",
    completion_line("b", ["one", "two"], n=2),
    completion_line("a", "used on line 1"),
    chat_line("c", "Gr\u00fc\u00dfe", temperature=0),
    completion_line("too long", "x" * 600),
    b"",
    completion_line("too long", "used by a line that is bad"),
    completion_line("d", [5, 6, 7]),
    completion_line("a", "used on line 1"),
]


@pytest.fixture
def batch(tmp_path: Path) -> OpenAIBatch:
    path = write_lines(tmp_path / "in.jsonl", LINES)
    return OpenAIBatch(path, "in.jsonl", chat_max_tokens=9)


def told(read: tuple[JobPrompts, list[LineError]]) -> Any:
    prompts, errors = read
    lines = [
        (prompts.request(line), [prompts.token_ids[prompt].tolist() for prompt in prompts.of_line(line)])
        for line in range(prompts.num_lines)
    ]
    return lines, prompts.params, [(error.line, error.custom_id, error.code, str(error)) for error in errors]


class LateReplicas(HereReplicas):
    """What is done first comes last."""

    def answer(self, *handed: Any, **constructor: Any) -> Iterator[Any]:
        results = list(super().answer(*handed, **constructor))
        random.Random(0).shuffle(results)
        yield from results


class LossyReplicas(HereReplicas):
    """The second parcel never comes back."""

    def answer(self, *handed: Any, **constructor: Any) -> Iterator[Any]:
        yield from (result for at, result in enumerate(super().answer(*handed, **constructor)) if at != 1)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Ray, and slices that go to replicas of this process."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")  # which a reader changes
    monkeypatch.setattr(reading, "ray", SimpleNamespace(put=lambda rows: rows, cluster_resources=lambda: {"CPU": 2.0}))
    monkeypatch.setattr(reading, "Replicas", LateReplicas)


def read(batch: OpenAIBatch, model: Path, earlier: EarlierRuns, options: RunOptions = OPTIONS) -> Any:
    return told(read_on_cluster(batch, str(model), {}, earlier, options, lambda: None))


def read_at_once(batch: OpenAIBatch, model: Path, earlier: EarlierRuns, options: RunOptions = OPTIONS) -> Any:
    reader = WeightlessReader(model, EngineOptions())
    return told(read_prompts(batch, reader, reader.sampling_defaults, earlier, options, lambda: None))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("slice_bytes", [1, 300, 1 << 20])
@pytest.mark.parametrize("answered", [[], [1, 5]], ids=str)
def test_slices_that_come_in_any_order_make_the_job_of_one_reader(
    slice_bytes: int, answered: list[int], batch: OpenAIBatch, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SLICE_BYTES", slice_bytes)
    earlier = EarlierRuns(answered=array("q", answered))
    lines, _, errors = expected = read_at_once(batch, model, earlier)
    assert len(lines) + len(errors) + len(answered) == 9
    assert read(batch, model, earlier) == expected


@pytest.mark.usefixtures("here")
def test_a_job_that_may_not_fail_ends_at_its_first_error(
    batch: OpenAIBatch, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SLICE_BYTES", 1)
    options = RunOptions(model_name="m", chat_max_tokens=9, max_error_rate=0.0)
    lines, _, errors = expected = read_at_once(batch, model, EarlierRuns(), options)
    assert (len(lines), len(errors)) == (1, 1)
    assert read(batch, model, EarlierRuns(), options) == expected


@pytest.mark.usefixtures("here")
def test_lines_that_cannot_be_read_are_named(batch: OpenAIBatch, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SLICE_BYTES", 1)
    monkeypatch.setattr(reading, "Replicas", LossyReplicas)
    with pytest.raises(ValueError, match=r"input 'in.jsonl': lines from 2 on: the process that was .* ended 3 times"):
        read(batch, model, EarlierRuns())


@pytest.mark.usefixtures("cluster")
def test_processes_of_a_cluster_read_it(batch: OpenAIBatch, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SLICE_BYTES", 300)
    assert read(batch, model, EarlierRuns()) == read_at_once(batch, model, EarlierRuns())


def test_small_jobs_and_tables_are_read_by_the_driver(batch: OpenAIBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_large(batch)
    monkeypatch.setattr(reading, "SLICE_BYTES", 10)
    assert is_large(batch)
    with open_source(batch.path, chat_max_tokens=9, ask=Ask("{{ custom_id }}")) as table:
        assert not is_large(table)


def test_a_request_is_held_to_what_windows_leave_of_it(tmp_path: Path) -> None:
    options, ids, params = EngineOptions(kv_cache_tokens=128, max_batch_tokens=64), [7] * 200, SamplingParams()
    mistral = {"architectures": ["MistralForCausalLM"]}
    window = write_config(tmp_path / "window", **mistral, sliding_window=32)
    WeightlessReader(window.parent, options).check_request(ids, params)
    whole = write_config(tmp_path / "whole", **mistral, sliding_window=None)
    with pytest.raises(ValueError, match="needs 14 KV pages"):
        WeightlessReader(whole.parent, options).check_request(ids, params)
