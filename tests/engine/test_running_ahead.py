"""A GPU gets a step before the tokens of the last one are read: whatever ends, leaves or is preempted meanwhile, the
answers are those of the CPU, which reads each step's tokens first."""

import random
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pytest

from batchllm import LLM, CompletionOutput, LogitsRule, RequestOutput, SamplingParams
from batchllm.engine.engine import Engine
from batchllm.engine.engine_requests import EngineRequest, Finished
from batchllm.sampling.draw import stream_seed
from batchllm.sampling.stop_tokens import MinTokens, StopTokens
from tests.engine import tiny
from tests.engine.fake_gpu import on_fake_gpu
from tests.engine.teacher import new_engine

pytestmark = pytest.mark.usefixtures("one_thread", "captures_at_once")

SMALL_POOL = {"page_size": 4, "kv_cache_tokens": 160, "max_batch_tokens": 24}


def random_job(generator: random.Random, stops: list[str]) -> tuple[list[list[int]], list[SamplingParams]]:
    prompts, params = [], []
    head = [generator.randrange(4, tiny.VOCAB_SIZE) for _ in range(20)]
    for i in range(8):
        own = [generator.randrange(4, tiny.VOCAB_SIZE) for _ in range(generator.randint(1, 4))]
        prompts.append(head[: generator.choice([0, 8, 20])] + own)
        max_tokens = generator.randint(1, 12)
        params.append(
            SamplingParams(
                temperature=generator.choice([0.0, 0.0, 1.0]),
                top_k=generator.choice([0, 5]),
                seed=i,
                n=generator.choice([1, 1, 3]),
                max_tokens=max_tokens,
                min_tokens=generator.choice([0, 0, min(3, max_tokens)]),
                stop=generator.sample(stops, 2) if generator.random() < 0.4 else None,
                stop_token_ids=[generator.randrange(tiny.VOCAB_SIZE) for _ in range(25)],
                prompt_logprobs=generator.choice([None, None, 2]),
                logprobs=generator.choice([None, None, 2]),
                logprob_token_ids=generator.choice([None, None, [7, 9]]),
                presence_penalty=generator.choice([0, 0, 0, 0.5]),
            )
        )
    return prompts, params


def seen(outputs: list[RequestOutput]) -> list:
    """All that callers see, log-probabilities rounded: sums have another order."""

    def rounded(entry: dict | None) -> dict | None:
        return entry and {token: round(one.logprob, 3) for token, one in entry.items()}

    def completion(one: CompletionOutput) -> tuple:
        logprobs = [rounded(entry) for entry in one.logprobs or []]
        ends = one.finish_reason, one.stop_reason
        return one.token_ids, one.text, *ends, round(one.cumulative_logprob, 3), logprobs

    return [
        (
            [completion(one) for one in output.outputs],
            [rounded(entry) for entry in output.prompt_logprobs or []],
            output.num_cached_tokens,
        )
        for output in outputs
    ]


@pytest.mark.parametrize("seed", range(8))
def test_answers_and_why_they_end_are_those_of_the_cpu(wide_dir, seed):
    generator = random.Random(seed)
    prompts, params = random_job(generator, [chr(c) for c in range(97, 123)])
    cpu, (gpu, _) = LLM(wide_dir, dtype="float32", **SMALL_POOL), on_fake_gpu(wide_dir, **SMALL_POOL)
    expected = seen(cpu.generate(prompts, params, use_tqdm=False))
    assert seen(gpu.generate(prompts, params, use_tqdm=False)) == expected
    assert gpu.stats["output_tokens"] == cpu.stats["output_tokens"]
    assert gpu.engine.progress.remaining_output_tokens == 0
    gpu.engine.audit()


def rules(eos: int) -> list[LogitsRule]:
    stop_tokens = StopTokens((eos,))
    return [MinTokens(stop_tokens), stop_tokens]


@dataclass
class Told:
    """By what steps give: tokens by request, and who finished how."""

    tokens: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    finished: dict[int, Finished] = field(default_factory=dict)

    def step(self, engine: Engine) -> bool:
        step = engine.step()
        if step is None:
            return False
        for request_id, token in zip(step.request_ids.tolist(), step.token_ids.tolist(), strict=True):
            self.tokens[request_id].append(token)
        self.finished |= {done.request_id: done for done in step.finished}
        return True


@pytest.mark.parametrize("seed", range(8))
def test_whatever_comes_and_goes_each_answer_is_what_its_request_gets_from_the_cpu(wide_dir, seed):
    """Requests come, stop, are aborted and are preempted while a step is in flight."""
    generator = random.Random(seed)
    cpu, (gpu, _) = LLM(wide_dir, dtype="float32", **SMALL_POOL), on_fake_gpu(wide_dir, **SMALL_POOL)
    engine, heads = new_engine(gpu, rules(eos=5)), [[generator.randrange(4, 250) for _ in range(24)] for _ in range(2)]
    given: dict[int, EngineRequest] = {}
    gone_with: dict[int, int] = {}  # how many tokens
    told, aborted = Told(), set()
    for _ in range(50):
        action = generator.random()
        if action < 0.3:
            new = []
            for _ in range(generator.randint(0, 3)):
                prompt = [*generator.choice(heads)[: generator.randint(1, 24)], generator.randrange(4, 250)]
                bound = generator.randint(1, 14)
                stops = [generator.randrange(tiny.VOCAB_SIZE) for _ in range(15)]
                params = SamplingParams(
                    temperature=generator.choice([0.0, 1.0]), max_tokens=bound, stop_token_ids=stops
                )
                new.append(EngineRequest(np.array(prompt, np.int32), params, [stream_seed(seed, 0, prompt)], bound))
            given |= {ids.start: one for one, ids in zip(new, engine.add(new), strict=True)}
        elif action < 0.4 and given:
            gone = generator.sample(list(given), min(2, len(given)))
            aborted |= set(gone) - told.finished.keys()
            engine.abort(gone)
            gone_with = {i: len(told.tokens[i]) for i in aborted}
        else:
            told.step(engine)
        engine.audit()
    while told.step(engine):
        engine.audit()
    assert told.finished.keys() == given.keys() - aborted
    assert gone_with == {i: len(told.tokens[i]) for i in gone_with}, "who has gone is told no more"
    assert engine.num_live == 0
    for i, answer in told.finished.items():
        alone, expected_of = new_engine(cpu, rules(eos=5)), Told()
        alone.add([given[i]])
        while expected_of.step(alone):
            pass
        (expected,) = expected_of.finished.values()
        assert answer.token_ids == expected.token_ids
        assert told.tokens[i] == answer.token_ids, "each token is told once, in its turn"
        assert answer.end == expected.end
        assert answer.cumulative_logprob == pytest.approx(expected.cumulative_logprob, abs=1e-3)


def prompts_of(count: int) -> list[list[int]]:
    return [[10 + i, 20, 30 + i] for i in range(count)]


def run(llm: LLM, count: int = 3, **fields) -> list[list[int]]:
    params = SamplingParams(**{"temperature": 0, "max_tokens": 8, "ignore_eos": True, **fields})
    return [o.outputs[0].token_ids for o in llm.generate(prompts_of(count), params, use_tqdm=False)]


def test_a_step_is_handed_over_before_the_tokens_of_the_last_one_are_waited_for(wide_dir):
    llm, gpu = on_fake_gpu(wide_dir)
    order = []
    forward, run_to = llm.engine.runner.forward, gpu.stream.run_to

    def traced_forward(*args):
        order.append("forward")
        return forward(*args)

    def traced_run_to(num_copied, done_ms):
        if num_copied > gpu.stream.num_copied:
            order.append("wait")
        run_to(num_copied, done_ms)

    llm.engine.runner.forward, gpu.stream.run_to = traced_forward, traced_run_to
    run(llm, max_tokens=4)
    assert order == ["forward", "forward", "wait", "forward", "wait", "forward", "wait", "wait"]


class Seen(LogitsRule):
    """Bans what a request has drawn before, which it must have seen."""

    def __init__(self):
        self.drawn: dict[int, set[int]] = {}

    def concerns(self, rows):
        return np.ones(len(rows), bool)

    def before_draw(self, logits, rows):
        for row, request_id in enumerate(rows.request_ids.tolist()):
            seen = self.drawn.get(request_id, set())
            assert len(seen) == rows.num_output_tokens[row]
            logits[row, list(seen)] = -float("inf")

    def after_draw(self, rows, tokens):
        for request_id, token in zip(rows.request_ids.tolist(), tokens.tolist(), strict=True):
            self.drawn.setdefault(request_id, set()).add(token)
        return []


def test_a_rule_that_must_see_tokens_before_the_next_draw_does(wide_dir):
    llm, _ = on_fake_gpu(wide_dir, rules=[Seen()])
    outputs = run(llm)
    assert outputs == run(LLM(wide_dir, dtype="float32", rules=[Seen()]))
    assert all(len(set(tokens)) == 8 for tokens in outputs)


class SeenByTheOdd(Seen):
    """Concerns requests of odd ids only, so steps wait or not as they come and go."""

    def concerns(self, rows):
        return rows.request_ids % 2 == 1


def test_steps_that_wait_and_steps_that_do_not_may_follow_each_other(wide_dir):
    prompts, params = prompts_of(4), [
        SamplingParams(temperature=0, max_tokens=bound, ignore_eos=True) for bound in (9, 3, 6, 5)
    ]  # fmt: skip
    outputs = [
        [o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)]
        for llm in (
            on_fake_gpu(wide_dir, rules=[SeenByTheOdd()])[0],
            LLM(wide_dir, dtype="float32", rules=[SeenByTheOdd()]),
        )
    ]
    assert outputs[0] == outputs[1]


def test_known_lengths_waste_no_row(wide_dir):
    llm, _ = on_fake_gpu(wide_dir)
    run(llm)
    gpu_steps = llm.stats["steps"]
    cpu = LLM(wide_dir, dtype="float32")
    run(cpu)
    assert gpu_steps == cpu.stats["steps"]


class CountsRows:
    """Of all batches."""

    def __init__(self, llm: LLM) -> None:
        self.num = 0
        forward = llm.engine.runner.forward

        def counted(batch, *others):
            self.num += batch.num_tokens
            return forward(batch, *others)

        llm.engine.runner.forward = counted


def test_a_request_that_stops_wastes_at_most_one_row(wide_dir):
    llm, _ = on_fake_gpu(wide_dir)
    (tokens,) = run(llm, count=1)
    counted = CountsRows(llm)
    (stopped,) = run(llm, count=1, stop_token_ids=[tokens[3]])
    assert stopped == tokens[: tokens.index(tokens[3]) + 1]
    assert counted.num == 3 + len(stopped) - 1 + 1, "prompt, decodes, and one more"


def test_seconds_are_the_devices_and_waiting_is_not_sampling(wide_dir):
    llm, gpu = on_fake_gpu(wide_dir)
    forward = llm.engine.runner.forward

    def timed(*args):
        gpu.stream.queued_ms += 5  # in which the host has nothing to do
        return forward(*args)

    llm.engine.runner.forward = timed
    run(llm)
    seconds = llm.stats["seconds"]
    assert seconds["forward"] == pytest.approx(0.005 * llm.stats["steps"])
    assert seconds["sample"] == 0
    assert seconds["wait"] > 0


def test_a_preempted_request_goes_on_from_the_token_that_was_under_way(wide_dir):
    """Its last token is not told yet when it gives its pages back."""
    prompts = [[10 + i, 20, 30 + i, 40] for i in range(30)]
    # Short ones come first, and teach that the long ones will be short.
    short = SamplingParams(temperature=0, max_tokens=40, stop_token_ids=[*range(4, 160)])
    params = [short] * 20 + [SamplingParams(temperature=0, max_tokens=39, stop_token_ids=[4])] * 10
    pool = {"page_size": 1, "kv_cache_tokens": 90}
    llm, _ = on_fake_gpu(wide_dir, **pool)
    outputs = [o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)]
    assert llm.stats["preemptions"] > 0
    expected = LLM(wide_dir, dtype="float32").generate(prompts, params, use_tqdm=False)
    assert outputs == [o.outputs[0].token_ids for o in expected]


def test_who_is_aborted_while_a_step_is_in_flight_is_told_no_more(wide_dir):
    """All requests are; the engine takes new ones as if it had been empty."""
    llm, _ = on_fake_gpu(wide_dir)
    engine, told = new_engine(llm, rules(eos=5)), Told()
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    one = EngineRequest(np.array([10, 20, 30], np.int32), params, [0], 6)
    (first,) = engine.add([one])
    assert told.step(engine)
    assert told.step(engine)
    assert len(told.tokens[first.start]) == 1, "those of the step before"
    engine.abort(first)
    (second,) = engine.add([one])
    while told.step(engine):
        engine.audit()
    assert len(told.tokens[first.start]) == 1
    assert told.tokens[second.start] == told.finished[second.start].token_ids == run(llm, count=1, max_tokens=6)[0]
