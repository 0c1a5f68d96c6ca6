"""An engine that lives long: a thousand waves of requests come and go, and it is as large as after the tenth."""

import ctypes
import gc
import resource

import numpy as np
import pytest

from batchllm import LLM, SamplingParams
from batchllm.engine.engine import Engine
from batchllm.engine.engine_requests import EngineRequest
from tests.engine.teacher import new_engine

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_WAVES = 1000
WAVE_SIZE = 50
# What the allocator and the libraries may accumulate meanwhile: 42 bytes for each of the requests that are gone.
NOISE_BYTES = 2 << 20


def resident_bytes() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def wave_of(number: int) -> list[EngineRequest]:
    """Prompts with a head that all waves share, a wave's own token and a request's; each wave has a stop set, and one
    request with a stop string and one with scores."""
    wave = []
    for place in range(WAVE_SIZE):
        outputs = 1 + place % 3
        params = SamplingParams(
            max_tokens=outputs,
            seed=number,
            stop_token_ids=[4 + number % 250, 4 + number // 250],
            stop=["zz"] if place == 1 else None,
            prompt_logprobs=0 if place == 2 else None,
        )
        prompt = np.array([5, 6, 7, 8, 4 + number % 250, 4 + place], np.int32)
        wave.append(EngineRequest(prompt, params, [number], outputs))
    return wave


@pytest.mark.parametrize("num_left_over", [0, 3 * WAVE_SIZE // 2], ids=["one after another", "that overlap"])
def test_a_thousand_waves_leave_an_engine_as_large_as_ten(tiny_dir, num_left_over):
    """num_left_over: the live requests beside which the next wave is added; without any, the engine begins anew."""
    llm = LLM(tiny_dir, dtype="float32", page_size=4, kv_cache_tokens=2048, max_batch_tokens=256)
    engine: Engine = new_engine(llm, list(llm.engine.rules))
    live: set[int] = set()
    num_finished, after_ten, last_id = 0, 0, -1

    def step() -> None:
        nonlocal num_finished
        gone = [finished.request_id for finished in engine.step().finished]
        assert live.issuperset(gone), "each ends once, and is one of those there are"
        live.difference_update(gone)
        num_finished += len(gone)

    for number in range(NUM_WAVES):
        ids = [i for completions in engine.add(wave_of(number)) for i in completions]
        assert ids[0] > last_id, "an id is never given twice"
        last_id = ids[-1]
        live.update(ids)
        while len(live) > num_left_over:
            step()
        assert engine.num_live == len(live)
        if number == 9:
            after_ten = resident_bytes()
    assert resident_bytes() - after_ten < NOISE_BYTES
    while live:
        step()
    assert num_finished == NUM_WAVES * WAVE_SIZE
    assert engine.step() is None
    engine.audit()  # every page is free
