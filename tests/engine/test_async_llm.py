"""AsyncLLM: many callers, one engine."""

import asyncio
import itertools
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from batchllm import LLM, AsyncLLM, LogitsRule, SamplingParams
from batchllm.async_llm import Caller, Mailbox
from batchllm.engine.engine_requests import EngineRequest
from tests.engine import tiny

pytestmark = pytest.mark.usefixtures("one_thread")
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_dir):
    return AsyncLLM(tiny_dir, dtype="float32")


async def outputs_of(llm, prompt, params=GREEDY, request_id=None):
    return [output async for output in llm.generate(prompt, params, request_id)]


def test_outputs_grow_and_the_last_one_is_finished_and_that_of_an_llm(llm, tiny_dir):
    prompts = [{"prompt_token_ids": ids} for ids in tiny.shared_prompts(20)]
    params = [SamplingParams(temperature=0, max_tokens=2 + i % 7, n=1 + i % 3, stop="q") for i in range(len(prompts))]

    async def run():
        return await asyncio.gather(*(outputs_of(llm, p, q) for p, q in zip(prompts, params, strict=True)))

    expected = LLM(tiny_dir, dtype="float32").generate(prompts, params, use_tqdm=False)
    for outputs, p, whole in zip(asyncio.run(run()), params, expected, strict=True):
        assert [output.finished for output in outputs] == [*[False] * (len(outputs) - 1), True]
        for before, after in itertools.pairwise(outputs):
            for shorter, longer in zip(before.outputs, after.outputs, strict=True):
                assert longer.token_ids[: len(shorter.token_ids)] == shorter.token_ids
        assert [o.token_ids for o in outputs[-1].outputs] == [o.token_ids for o in whole.outputs]
        assert [o.text for o in outputs[-1].outputs] == [o.text for o in whole.outputs]
        assert len(outputs[-1].outputs) == p.n


def test_a_request_that_comes_later_starts_before_the_first_ends(llm):
    async def run():
        events = []

        async def follow(name, prompt, num_tokens):
            params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
            async for output in llm.generate({"prompt_token_ids": prompt}, params):
                if name == "first" and len(events) == 0:
                    started.set()
                events.append((name, output.finished))

        started = asyncio.Event()
        first = asyncio.create_task(follow("first", [5, 6, 7], 300))
        await started.wait()
        await follow("second", [5, 6, 8], 2)
        await first
        return events

    events = asyncio.run(run())
    names = [name for name, _ in events]  # whoever is late gets several tokens in one output
    assert names.index("second") < events.index(("first", True))


def test_whoever_stops_listening_aborts_the_request(llm):
    async def run():
        async for _ in llm.generate({"prompt_token_ids": [5, 6, 7]}, SamplingParams(max_tokens=400, ignore_eos=True)):
            break
        task = asyncio.create_task(
            outputs_of(llm, {"prompt_token_ids": [5, 9]}, SamplingParams(max_tokens=400, ignore_eos=True))
        )
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await outputs_of(llm, {"prompt_token_ids": [5, 6]})

    assert asyncio.run(run())[-1].finished
    assert llm.num_live == 0


def test_what_is_refused_is_that_callers_alone(llm):
    async def run():
        return await asyncio.gather(
            outputs_of(llm, {"prompt_token_ids": [99999]}),
            outputs_of(llm, {"prompt_token_ids": [5]}, request_id="a"),
            outputs_of(llm, {"prompt_token_ids": [5]}, request_id="a"),
            outputs_of(llm, {"prompt_token_ids": [6]}),
            return_exceptions=True,
        )

    out_of_vocabulary, named, taken, good = asyncio.run(run())
    assert "the vocabulary has" in str(out_of_vocabulary)
    assert named[-1].request_id == "a"
    assert str(taken) == "request_id: 'a' is in use"
    assert good[-1].finished
    assert asyncio.run(outputs_of(llm, {"prompt_token_ids": [5]}, request_id="a"))[-1].request_id == "a"


class Gate(LogitsRule):
    """Each step waits at its end until it is opened; a request whose prompt begins with 9 is refused."""

    def __init__(self):
        self.reached, self.opened = threading.Event(), threading.Event()
        self.prompts = []

    def add(self, request):
        self.prompts.append(request.prompt_token_ids.tolist())
        if request.prompt_token_ids[0] == 9:
            raise ValueError("nine")

    def after_draw(self, rows, tokens):
        self.reached.set()
        assert self.opened.wait(60)
        return []


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def gated_llm(tiny_dir, gate):
    yield AsyncLLM(tiny_dir, dtype="float32", rules=[gate])
    gate.opened.set()


async def asked_while_the_engine_is_busy(llm, gate, prompts, monkeypatch):
    """The first of the prompts is in a step; the others have been sent."""
    sent = []

    def send(mailbox, item, send=Mailbox.send):
        sent.append(item)
        send(mailbox, item)

    monkeypatch.setattr(Mailbox, "send", send)
    tasks = [asyncio.create_task(outputs_of(llm, {"prompt_token_ids": prompts[0]}))]
    assert await asyncio.to_thread(gate.reached.wait, 60)
    tasks += [asyncio.create_task(outputs_of(llm, {"prompt_token_ids": prompt})) for prompt in prompts[1:]]
    while len(sent) < len(prompts):
        await asyncio.sleep(0.001)
    return tasks


def test_what_the_engine_refuses_is_that_callers_alone(gated_llm, gate, monkeypatch):
    async def run():
        tasks = await asked_while_the_engine_is_busy(gated_llm, gate, [[5, 6], [5, 7], [9, 6], [5, 8]], monkeypatch)
        gate.opened.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second, refused, third = asyncio.run(run())
    assert "nine" in str(refused)
    assert all(outputs[-1].finished for outputs in (first, second, third))


def test_whoever_left_before_the_engine_looked_is_never_added(gated_llm, gate, monkeypatch):
    async def run():
        first, leaves = await asked_while_the_engine_is_busy(gated_llm, gate, [[5, 6], [5, 7]], monkeypatch)
        leaves.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        gate.opened.set()
        return await first

    assert asyncio.run(run())[-1].finished
    assert gate.prompts == [[5, 6]]


class FailsWithThree(LogitsRule):
    def __init__(self):
        self.fails = True

    def after_draw(self, rows, tokens):
        if self.fails and len(rows) == 3:
            self.fails = False
            raise ValueError("a step failed")
        return []


def test_a_step_that_fails_is_told_to_all_and_the_engine_goes_on(tiny_dir):
    llm = AsyncLLM(tiny_dir, dtype="float32", rules=[FailsWithThree()])
    params = SamplingParams(max_tokens=400, ignore_eos=True)

    async def run():
        first = await asyncio.gather(
            *(outputs_of(llm, {"prompt_token_ids": [5, i]}, params) for i in range(3)), return_exceptions=True
        )
        return first, await outputs_of(llm, {"prompt_token_ids": [5, 6]})

    first, second = asyncio.run(run())
    assert [str(error) for error in first] == ["a step failed"] * 3
    assert second[-1].finished


class FailsToForget(LogitsRule):
    def __init__(self):
        self.fails = True

    def forget(self, request):
        if self.fails:
            self.fails = False
            raise ValueError("forgets nothing")


def test_an_abort_that_fails_is_told_to_all_and_the_engine_goes_on(tiny_dir):
    llm = AsyncLLM(tiny_dir, dtype="float32", rules=[FailsToForget()])
    params = SamplingParams(max_tokens=400, ignore_eos=True)

    async def run():
        stays, leaves = (llm.generate({"prompt_token_ids": [5, token]}, params) for token in (6, 7))
        await anext(stays)
        await anext(leaves)
        await leaves.aclose()
        with pytest.raises(ValueError, match="forgets nothing"):
            async for _ in stays:
                pass
        return await asyncio.wait_for(outputs_of(llm, {"prompt_token_ids": [5, 6]}), 60)

    assert asyncio.run(run())[-1].finished


def test_a_caller_whose_event_loop_is_closed_is_told_nothing():
    event_loop = asyncio.new_event_loop()
    caller = Caller(EngineRequest(np.array([5], np.int32), GREEDY, [0], 1), event_loop)
    event_loop.close()
    caller.tell([(0, 5)])


def test_a_process_ends_without_closing_anything(tiny_dir):
    code = """
        import asyncio, sys
        from batchllm import AsyncLLM, SamplingParams

        async def main():
            llm = AsyncLLM(sys.argv[1], dtype="float32", num_threads=1)
            params = SamplingParams(max_tokens=400, ignore_eos=True)
            async for output in llm.generate({"prompt_token_ids": [5, 6]}, params):
                break
            print("ends")

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tiny_dir)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "ends\n"), done.stderr


def test_nothing_that_a_caller_is_told_is_lost():
    async def run():
        caller = Caller(EngineRequest(np.array([5], np.int32), GREEDY, [0], 1), asyncio.get_running_loop())
        thread = threading.Thread(target=lambda: [caller.tell([(0, i)]) for i in range(20_000)])
        thread.start()
        told = []
        while len(told) < 20_000:
            told += await asyncio.wait_for(caller.news(), 30)
        thread.join()
        return told

    assert asyncio.run(run()) == [(0, i) for i in range(20_000)]
