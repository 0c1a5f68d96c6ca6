"""The engine as add, step and abort: answers do not depend on who else is there, and who has gone leaves nothing."""

import random

import numpy as np
import pytest
import torch

import batchllm_ext as ext
from batchllm import LLM, LogitsRule, SamplingParams
from batchllm.engine.engine_requests import EngineRequest
from batchllm.request_table import End, RequestTable
from tests.engine import tiny
from tests.engine.teacher import new_engine

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def llm(tiny_dir):
    return LLM(tiny_dir, dtype="float32", page_size=4, kv_cache_tokens=240, max_batch_tokens=24)


def request(prompt: list[int], *, seed: int = 0, n: int = 1, outputs: int = 6, **fields) -> EngineRequest:
    params = SamplingParams(ignore_eos=True, max_tokens=outputs, n=n, **fields)
    return EngineRequest(np.array(prompt, np.int32), params, [seed + sample for sample in range(n)], outputs)


def finish(engine) -> dict[int, list[int]]:
    tokens = {}
    while (step := engine.step()) is not None:
        tokens |= {finished.request_id: finished.token_ids for finished in step.finished}
    return tokens


def alone(llm: LLM, one: EngineRequest) -> list[list[int]]:
    engine = new_engine(llm, [])
    (ids,) = engine.add([one])
    tokens = finish(engine)
    return [tokens[i] for i in ids]


@pytest.mark.parametrize("seed", range(12))
def test_whatever_comes_and_goes_each_answer_is_what_its_request_gets_alone(llm, seed):
    generator = random.Random(seed)
    engine = new_engine(llm, [])
    heads = [[generator.randrange(4, tiny.VOCAB_SIZE) for _ in range(generator.randint(1, 30))] for _ in range(3)]
    given: dict[int, tuple[EngineRequest, int]] = {}
    tokens, aborted = {}, set()
    for _ in range(60):
        action = generator.random()
        if action < 0.25:
            new = []
            for _ in range(generator.randint(0, 4)):
                prompt = generator.choice(heads)[: generator.randint(1, 30)]
                prompt = [*prompt, *(generator.randrange(4, tiny.VOCAB_SIZE) for _ in range(generator.randint(0, 5)))]
                temperature = generator.choice([0.0, 1.0])
                n, outputs = generator.randint(1, 3), generator.randint(1, 9)
                new.append(request(prompt, seed=seed, n=n, outputs=outputs, temperature=temperature))
            for one, ids in zip(new, engine.add(new), strict=True):
                assert not given.keys() & set(ids), "ids are never given twice"
                given |= {i: (one, i - ids.start) for i in ids}
        elif action < 0.35 and given:
            gone = generator.sample(list(given), min(3, len(given)))
            aborted |= set(gone) - tokens.keys()
            engine.abort(gone)
        elif (step := engine.step()) is not None:
            tokens |= {finished.request_id: finished.token_ids for finished in step.finished}
        engine.audit()
    tokens |= finish(engine)
    assert tokens.keys() == given.keys() - aborted
    assert engine.num_live == 0
    cache: dict[int, list[list[int]]] = {}
    for i, token_ids in tokens.items():
        one, sample = given[i]
        assert token_ids == cache.setdefault(id(one), alone(llm, one))[sample]


def test_a_request_that_comes_later_has_its_first_token_before_the_one_before_it_ends(llm):
    engine = new_engine(llm, [])
    ((first,),) = engine.add([request([5, 6, 7], outputs=40)])
    engine.step()
    ((second,),) = engine.add([request([5, 6, 8], outputs=2)])
    order = []
    while (step := engine.step()) is not None:
        order += [(i, "token") for i in step.request_ids.tolist()]
        order += [(finished.request_id, "end") for finished in step.finished]
    assert order.index((second, "end")) < order.index((first, "end"))


def test_one_request_that_cannot_fit_is_named_and_none_is_added(llm):
    engine = new_engine(llm, [])
    engine.add([request([5, 6])])
    with pytest.raises(ValueError, match=r"^request 1: request \d+ needs \d+ KV pages of 4 tokens"):
        engine.add([request([5, 6]), request([7] * 300)])
    assert engine.num_live == 1
    assert len(finish(engine)) == 1


class Refuses(LogitsRule):
    def add(self, request):
        if request.prompt_token_ids[0] == 9:
            raise ValueError("nine")


def test_a_request_that_a_rule_refuses_is_named_and_none_is_added(llm):
    engine = new_engine(llm, [Refuses()])
    with pytest.raises(ValueError, match=r"^request 1: nine$"):
        engine.add([request([5, 6], n=2), request([9, 6]), request([5])])
    assert engine.num_live == 0
    assert engine.step() is None


class Counts(Refuses):
    """Who has come and who has gone."""

    def __init__(self):
        self.come, self.gone = [], []

    def add(self, request):
        super().add(request)
        self.come.append(request.id)

    def forget(self, request):
        self.gone.append(request.id)


def test_a_rule_is_told_of_every_request_when_it_comes_and_when_it_goes(llm):
    engine = new_engine(llm, [rule := Counts()])
    (finishes, aborted) = engine.add([request([5, 6], n=2), request([5, 7])])
    engine.abort([*aborted, *aborted])
    assert rule.gone == list(aborted)
    finish(engine)
    assert sorted(rule.gone) == [*finishes, *aborted]
    with pytest.raises(ValueError, match="nine"):
        engine.add([request([5, 6]), request([9, 6])])
    assert len(rule.come) == 4
    assert {*rule.come} <= {*rule.gone}


class OfMinTokens(LogitsRule):
    """The number of steps it was in."""

    num_asked = 0

    def concerns_params(self, params):
        return params.min_tokens > 0

    def after_draw(self, rows, tokens):
        self.num_asked += 1
        return []


def test_a_rule_is_in_the_way_of_no_step_without_requests_that_it_concerns(llm):
    engine = new_engine(llm, [rule := OfMinTokens()])
    engine.add([request([5, 6], outputs=2)])
    finish(engine)
    assert rule.num_asked == 0
    others = EngineRequest(np.array([5], np.int32), SamplingParams(temperature=0, min_tokens=2, max_tokens=3), [0], 3)
    engine.add([request([5, 6], outputs=9), others])
    finish(engine)
    assert rule.num_asked == 3


def test_waves_of_requests_leave_nothing_behind(llm):
    engine = new_engine(llm, [])
    capacity = None
    engine.add([request([9] * 20, outputs=400)] if llm.engine.kv_cache.num_pages * 4 > 420 else [])
    previous = 0
    for wave in range(200):
        ids = [i for r in engine.add([request([5, wave % 250 + 4, k + 4], outputs=2) for k in range(10)]) for i in r]
        assert ids[0] >= previous
        previous = ids[-1] + 1
        assert len(finish(engine)) == 10
        assert engine.num_live == 0
        if wave == 10:
            capacity = len(engine.requests.column(np.int32).values)
    assert len(engine.requests.column(np.int32).values) == capacity
    engine.audit()


def test_waves_that_overlap_leave_nothing_behind(llm, monkeypatch):
    make_planner, planners = ext.BatchPlanner, []

    def kept_planner(**options):
        planners.append(make_planner(**options))
        return planners[-1]

    monkeypatch.setattr(ext, "BatchPlanner", kept_planner)
    engine, live, sizes = new_engine(llm, []), [], []
    for wave in range(300):
        live += [i for r in engine.add([request([5, wave % 250 + 4, k + 4], outputs=4) for k in range(3)]) for i in r]
        step = engine.step()
        ended = {finished.request_id for finished in step.finished}
        live = [i for i in live if i not in ended]
        assert sorted(engine.requests.ids()) == live
        assert sorted(planners[-1].order.tolist()) == live
        sizes.append(engine.requests.room)
    assert max(sizes) == max(sizes[:100]), "arrays stop growing"
    engine.audit()


class Interrupts(LogitsRule):
    """Like Ctrl-C in the middle of a step."""

    def __init__(self):
        self.after = 3

    def after_draw(self, rows, tokens):
        self.after -= 1
        if self.after == 0:
            raise KeyboardInterrupt
        return []


def test_an_interrupted_step_leaves_an_empty_engine(llm):
    engine = new_engine(llm, [Interrupts()])
    engine.add([request([5, 6, 7], outputs=9)])
    with pytest.raises(KeyboardInterrupt):
        finish(engine)
    assert engine.num_live == 0
    assert engine.step() is None
    one = request([5, 6, 7], outputs=9)
    ((i,),) = engine.add([one])
    assert finish(engine)[i] == alone(llm, one)[0]


def answers(llm: LLM, prompts, **fields) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, **fields)
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]


def test_an_exception_in_a_callback_leaves_the_next_job_a_clean_engine(tiny_dir):
    llm = LLM(tiny_dir, dtype="float32")
    prompts = tiny.shared_prompts(8)
    expected = answers(llm, prompts)

    def fail(progress):
        raise RuntimeError("of the caller")

    params = [SamplingParams(temperature=0, max_tokens=6)] * len(prompts)
    with pytest.raises(RuntimeError, match="of the caller"):
        list(llm.generate_as_completed(prompts, params, on_progress=fail))
    assert llm.engine.num_live == 0
    assert answers(llm, prompts) == expected


def test_two_jobs_of_one_model_may_take_turns(tiny_dir):
    llm = LLM(tiny_dir, dtype="float32")
    prompts = tiny.shared_prompts(8)
    expected = answers(llm, prompts)
    params = [SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)] * len(prompts)
    jobs = [llm.generate_as_completed(prompts, params) for _ in range(2)]
    results: list[dict[int, list[int]]] = [{}, {}]
    while any(len(result) < len(prompts) for result in results):
        for job, result in zip(jobs, results, strict=True):
            for index, output in job:
                result[index] = output.outputs[0].token_ids
                break
    for result in results:
        assert [result[i] for i in range(len(prompts))] == expected


class CountsPenalised(Counts):
    """Asks for some parameters only."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def concerns_params(self, params):
        self.asked.append(params)
        return params.presence_penalty != 0


def test_a_rule_is_told_of_the_requests_whose_parameters_concern_it_alone(llm):
    engine = new_engine(llm, [rule := CountsPenalised(), everybody := Counts()])
    plain = SamplingParams(temperature=0)
    penalised = SamplingParams(temperature=0, presence_penalty=1)
    added = engine.add([request([5, token])._replace(params=p) for token in (6, 7) for p in (plain, penalised)])
    assert rule.asked == [plain, penalised], "once for all requests with the same"
    finish(engine)
    concerned = [*added[1], *added[3]]
    assert rule.come == concerned
    assert sorted(rule.gone) == concerned
    assert sorted(everybody.gone) == sorted(everybody.come) == [i for ids in added for i in ids]


class Bans(LogitsRule):
    """A user's own rule: some tokens are never drawn, and one ends the request."""

    def __init__(self, banned, last):
        self.banned, self.last = banned, last

    def concerns(self, rows):
        return np.ones(len(rows), bool)

    def before_draw(self, logits, rows):
        logits[:, self.banned] = -torch.inf

    def after_draw(self, rows, tokens):
        return [(row, End("mine")) for row, token in enumerate(tokens.tolist()) if token == self.last]


def test_a_users_rule_bans_tokens_and_ends_requests_with_its_own_reason(tiny_dir):
    free = answers(LLM(tiny_dir, dtype="float32"), tiny.shared_prompts(8))
    banned, last = free[0][0], free[1][1]
    llm = LLM(tiny_dir, dtype="float32", rules=[Bans([banned], last)])
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    outputs = [output.outputs[0] for output in llm.generate(tiny.shared_prompts(8), params, use_tqdm=False)]
    assert all(banned not in output.token_ids for output in outputs)
    ended = [output for output in outputs if output.stop_reason == "mine"]
    assert ended
    assert all(output.token_ids[-1] == last and output.finish_reason == "stop" for output in ended)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, stop_token_ids=[last])
    outputs = [output.outputs[0] for output in llm.generate(tiny.shared_prompts(8), params, use_tqdm=False)]
    assert [o.stop_reason for o in outputs if o.finish_reason == "stop"] == ["mine"] * len(ended), (
        "the first rule says why"
    )


def test_a_request_table_finds_requests_wherever_ids_and_slots_have_come_to():
    generator, table, expected, next_id = random.Random(1), RequestTable(), {}, 0
    column = table.column(np.int32, -7)
    for _ in range(5000):
        if generator.random() < 0.5 or not expected:
            next_id += generator.choice([0, 0, 0, 5])
            live = table.add(next_id, np.array([1], np.int32), SamplingParams(), 0, 1)
            assert column.values[live.slot] == -7
            column.values[live.slot] = next_id
            expected[next_id] = live
            next_id += 1
        else:
            live = expected.pop(generator.choice(list(expected) if generator.random() < 0.5 else [min(expected)]))
            table.remove(np.array([live.slot]))
            assert live.id not in table
        ids = np.array(sorted(expected), np.int32)
        assert sorted(table.ids()) == ids.tolist()
        assert column.values[table.slots(ids)].tolist() == ids.tolist()
        assert [table[i] for i in expected] == list(expected.values())
        live = table.at(table.live_slots(np.arange(next_id + 2, dtype=np.int32)))
        assert live == [expected[i] for i in sorted(expected)]
        assert len(table) == len(expected)
    with pytest.raises(KeyError):
        table[next_id]
