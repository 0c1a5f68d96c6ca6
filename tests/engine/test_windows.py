"""Sliding windows against transformers: prompts and shared prefixes of several windows, in chunks, preempted."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from batchllm import LLM, SamplingParams
from batchllm.models.backend import describe_model
from batchllm.models.layer_spec import widest_window
from tests.engine import tiny
from tests.engine.teacher import (
    assert_logits_agree,
    our_logits,
    plan_for_short_outputs,
    transformers_logits,
)

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-4
FAMILIES = [name for name in tiny.FAMILIES if name.endswith("window")]
NUM_OUTPUT = 24  # a window and a half
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_OUTPUT)


def ids(generator: random.Random, count: int) -> list[int]:
    return [generator.randrange(tiny.NUM_SPECIAL, tiny.VOCAB_SIZE) for _ in range(count)]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Under a prefix of 2.5 windows two of 1.5 more, each with questions below, at and above a window; and loners."""
    generator = random.Random(0)
    root = ids(generator, 5 * tiny.WINDOW // 2)
    branches = [root + ids(generator, 3 * tiny.WINDOW // 2) for _ in range(2)]
    lengths = (1, tiny.WINDOW - 1, tiny.WINDOW, tiny.WINDOW + 1)
    prompts = [branch + ids(generator, length) for branch in branches for length in lengths]
    prompts += [ids(generator, length) for length in (tiny.WINDOW, tiny.WINDOW + 1, 6 * tiny.WINDOW)]
    generator.shuffle(prompts)
    return prompts


@pytest.fixture(scope="module")
def continuations(prompts) -> list[list[int]]:
    generator = random.Random(1)
    return [ids(generator, NUM_OUTPUT) for _ in prompts]


@pytest.fixture(scope="module", params=FAMILIES)
def directory(tiny_model, request):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def theirs(directory, prompts, continuations) -> list[torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    return transformers_logits(model, prompts, continuations)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"levels": 0},
        {"levels": 1, "page_size": 4},
        {"page_size": 1, "max_batch_tokens": 2 * tiny.WINDOW + 1},  # chunks of about two windows
        {"max_batch_tokens": 13},  # and of less than one
    ],
    ids=str,
)
def test_a_row_sees_its_window(directory, prompts, continuations, theirs, options):
    ours = our_logits(LLM(directory, dtype="float32", **options), prompts, continuations)
    assert_logits_agree(ours, theirs, TOLERANCE)


@pytest.mark.parametrize("levels", [None, 0])
def test_preempted_requests_see_their_windows(directory, prompts, continuations, theirs, levels, monkeypatch):
    planners = plan_for_short_outputs(monkeypatch)
    slides = widest_window(describe_model(directory, "auto").attention_kinds) >= 0
    longest = 2 * tiny.WINDOW if slides else max(map(len, prompts)) + NUM_OUTPUT  # in pages that are held at once
    options = {"levels": levels, "page_size": 2, "max_batch_tokens": 2 * tiny.WINDOW}
    llm = LLM(directory, dtype="float32", kv_cache_tokens=3 * longest, **options)
    ours = our_logits(llm, prompts, continuations)
    assert planners[-1].stats["preemptions"] > 0
    assert_logits_agree(ours, theirs, TOLERANCE)


@pytest.mark.parametrize("num_windows", [1, 3])
def test_a_pool_of_few_windows_holds_a_prompt_of_many(tiny_model, prompts, continuations, num_windows):
    """Where all layers have one; a full layer would need all of the prompt."""
    directory = tiny_model("mistral-window")
    options = {"dtype": "float32", "page_size": 2, "max_batch_tokens": 8}
    kv_cache_tokens = num_windows * (tiny.WINDOW + 8)  # the window, a chunk and what shares a page with the window
    assert kv_cache_tokens < max(map(len, prompts))
    some = our_logits(LLM(directory, kv_cache_tokens=kv_cache_tokens, **options), prompts, continuations)
    assert_logits_agree(some, our_logits(LLM(directory, **options), prompts, continuations), TOLERANCE)
    with pytest.raises(ValueError, match=f"needs {(tiny.WINDOW + 8) // 2} KV pages of 2 tokens"):
        LLM(directory, kv_cache_tokens=tiny.WINDOW + 6, **options).generate([max(prompts, key=len)], GREEDY)
    two_kinds = LLM(tiny_model("qwen2-window"), kv_cache_tokens=kv_cache_tokens, **options)
    with pytest.raises(ValueError, match="KV pages"):
        two_kinds.generate([max(prompts, key=len)], GREEDY)


def test_a_window_decides_logits(tiny_model, tmp_path, prompts, continuations):
    """So these tests would see one that is a position too short."""
    directory = tiny_model("mistral-window")
    shorter = tiny.copy_with(directory, tmp_path / "shorter", sliding_window=tiny.WINDOW - 1)
    one, other = (our_logits(LLM(model, dtype="float32"), prompts, continuations) for model in (directory, shorter))
    with pytest.raises(AssertionError, match="error"):
        assert_logits_agree(one, other, 10 * TOLERANCE)
