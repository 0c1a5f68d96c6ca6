"""What a run leaves beside its answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batchllm_ext as ext
from batchllm.engine.recorder import RunRecorder
from batchllm.jobs.figures import leave_figures, read_figures
from batchllm.jobs.job_prompts import JobPrompts
from batchllm.jobs.line import COMPLETION, BatchRequest
from batchllm.jobs.reading import TokenizedLine
from batchllm.jobs.run import figures_beside
from batchllm.outputs import JobProgress
from batchllm.sampling_params import SamplingParams


@pytest.fixture
def recorder() -> RunRecorder:
    """Of six requests, of which two share 40 tokens; the last one's segment has no other reader."""
    recorder = RunRecorder()
    arrays = [[-1, -1], [0, 0], [40, 30], [3, 5], [-1, -1, -1, 0, 0, 1]]
    recorder.added(100, ext.Segments(*(np.array(values, np.int32) for values in arrays)))
    recorder.progress = JobProgress(6, 6, 210, 70, 15, 0, 4.5, seconds={"forward": 4.0})
    return recorder


def leave(path: Path, recorder: RunRecorder, stats: dict[str, Any], log: Any = pytest.fail, **options: Any) -> None:
    prompts = JobPrompts()  # six completions of four prompts of three lines
    for line, counts in ((1, [2]), (4, [1, 2]), (9, [1])):
        request = BatchRequest(line, "id", COMPLETION, None, (), SamplingParams())
        prompts.add(TokenizedLine(request, [[5]] * len(counts), [SamplingParams(n=n) for n in counts]))
    options = {"model": "m", "input": Path("-"), "overwrite": False, **options}
    leave_figures(path, recorder, prompts, stats, log=log, **options)


def test_groups_are_named_by_a_line_and_a_prompt_of_it(recorder: RunRecorder, tmp_path: Path) -> None:
    leave(tmp_path / "f", recorder, {})
    figures = read_figures(tmp_path / "f")
    groups = {(group.line, group.prompt): (group.requests, group.prefix_tokens) for group in figures.groups}
    assert groups == {(4, 1): (2, 40), (9, 0): (1, 30)}


def test_seconds_are_those_of_the_whole_job_where_it_came_to_its_end(recorder: RunRecorder, tmp_path: Path) -> None:
    leave(tmp_path / "stopped", recorder, {})
    leave(tmp_path / "done", recorder, {"seconds": {"forward": 4.0, "total": 5.0}})
    assert read_figures(tmp_path / "stopped").seconds == {"forward": 4.0}
    assert read_figures(tmp_path / "done").seconds == {"forward": 4.0, "total": 5.0}


def test_the_input_is_named_if_it_can_be_read_again(recorder: RunRecorder, tmp_path: Path) -> None:
    (tmp_path / "in").touch()
    for name, source, named in (("a", tmp_path / "in", str(tmp_path / "in")), ("b", Path("-"), None)):
        leave(tmp_path / name, recorder, {}, input=source)
        assert read_figures(tmp_path / name).input == named


def test_where_nothing_ran_nothing_is_left(tmp_path: Path) -> None:
    leave(tmp_path / "f", RunRecorder(), {})
    assert not (tmp_path / "f").exists()


def test_figures_that_cannot_be_written_are_told_and_fail_no_job(recorder: RunRecorder) -> None:
    told: list[str] = []
    leave(Path("/dev/full"), recorder, {}, log=told.append)
    assert told == ["batchllm: figures '/dev/full': No space left on device"]


@pytest.mark.parametrize(("output", "figures"), [("a/out.jsonl", "a/out.figures.json"), ("/dev/stdout", None)])
def test_figures_stand_beside_the_answers(output: str, figures: str | None) -> None:
    assert figures_beside(Path(output)) == (Path(figures) if figures else None)
