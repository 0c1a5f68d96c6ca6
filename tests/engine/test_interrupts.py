"""Ctrl-C wherever it comes: the next job finds a clean engine, and a job beside it has its answers or an error."""

import gc
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

import batchllm.driver
import batchllm.engine.engine
import batchllm.llm
import batchllm.request_table
import batchllm.sampling.rule_book
from batchllm import LLM, SamplingParams

pytestmark = pytest.mark.usefixtures("one_thread")

MODULES = [
    batchllm.driver,
    batchllm.engine.engine,
    batchllm.llm,
    batchllm.request_table,
    batchllm.sampling.rule_book,
]
FILES = {inspect.getfile(module) for module in MODULES}
PROMPTS = [[5, 6, 7, 8, 9], [5, 6, 7, 8, 10]]
PARAMS = [SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)] * len(PROMPTS)

Place = tuple[str, int]  # a file and a line


class Interrupt:
    """A trace function that raises KeyboardInterrupt at a line, when it is reached for the first time."""

    def __init__(self, line: Place | None = None) -> None:
        self.line = line
        self.seen: dict[Place, None] = {}

    def __call__(self, frame, event, arg):
        if frame.f_code.co_filename not in FILES:
            return None
        here = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line":
            self.seen[here] = None
            if here == self.line:
                self.line = None
                raise KeyboardInterrupt
        return self

    @contextmanager
    def traced(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


@pytest.fixture(scope="module")
def llm(tiny_dir):
    return LLM(tiny_dir, dtype="float32", page_size=4, kv_cache_tokens=240, max_batch_tokens=24)


def answers(llm: LLM) -> list[list[int]]:
    outputs = dict(llm.generate_as_completed(PROMPTS, PARAMS, on_progress=lambda progress: None))
    return [outputs[i].outputs[0].token_ids for i in range(len(PROMPTS))]


@contextmanager
def job_beside(llm: LLM, is_there: bool) -> Iterator[dict[int, list[int]]]:
    """The answers of a job that is under way meanwhile; none if it is dropped."""
    tokens: dict[int, list[int]] = {}
    if not is_there:
        yield tokens
        return
    job = llm.generate_as_completed(PROMPTS, PARAMS)
    first = [next(job)]
    yield tokens
    try:
        tokens |= {index: output.outputs[0].token_ids for index, output in (*first, *job)}
    except RuntimeError as error:
        if "the requests of this job were dropped" not in str(error):
            raise


@pytest.mark.parametrize("beside_another", [False, True])
def test_an_interrupted_job_leaves_the_next_one_a_clean_engine(llm, monkeypatch, beside_another):
    monkeypatch.setattr(
        gc, "get_freeze_count", lambda: 1
    )  # counting takes long, and jobs freeze only if there are none
    expected = answers(llm)
    everywhere = Interrupt()
    with job_beside(llm, beside_another), everywhere.traced():
        answers(llm)
    assert len(everywhere.seen) > 100
    for line in everywhere.seen:
        with job_beside(llm, beside_another) as others, suppress(KeyboardInterrupt), Interrupt(line).traced():
            answers(llm)
        assert not others or [others[i] for i in range(len(PROMPTS))] == expected, line
        assert answers(llm) == expected, line
        assert llm.engine.num_live == 0, line
        llm.engine.audit()
