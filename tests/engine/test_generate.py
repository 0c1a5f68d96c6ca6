"""LLM.generate from end to end on a tiny random model: what the outputs are, and what they do not depend on."""

import random
import re
from unittest.mock import MagicMock

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from batchllm import LLM, RequestOutput, SamplingParams
from batchllm.device.ops import CpuOps
from batchllm.models.config import ModelConfig
from batchllm.sampling.draw import stream_seed
from tests.engine import tiny
from tests.engine.rows import Requests
from tests.engine.teacher import transformers_logits

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_OUTPUT = 8
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_OUTPUT, ignore_eos=True)
STATS = {
    *("num_requests", "prompt_tokens", "computed_prompt_tokens", "recomputed_tokens"),
    *("output_tokens", "steps", "preemptions", "peak_kv_tokens", "captures", "products", "seconds"),
    *("num_threads", "cpu_s", "cpu_wait_s"),
}
PHASES = {"load", "tokenize", "plan", "schedule", "forward", "sample", "detokenize", "total"}

PROMPT_FORMS = {  # of a text and its ids
    "text": lambda text, ids: text,
    "list of text": lambda text, ids: [text],
    "dict of text": lambda text, ids: {"prompt": text},
    "list of dict of text": lambda text, ids: [{"prompt": text}],
    "ids": lambda text, ids: ids,
    "list of ids": lambda text, ids: [ids],
    "tuple of tuple": lambda text, ids: (tuple(ids),),
    "array": lambda text, ids: np.array(ids),
    "list of array": lambda text, ids: [np.array(ids, np.int64)],
    "dict of ids": lambda text, ids: {"prompt_token_ids": ids},
    "list of dict of ids": lambda text, ids: [{"prompt_token_ids": ids}],
}


def generate(llm: LLM, prompts, params=GREEDY) -> list[RequestOutput]:
    return llm.generate(prompts, params, use_tqdm=False)


def tokens(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    """Token ids by prompt and completion."""
    return [[completion.token_ids for completion in output.outputs] for output in outputs]


def mixed_params(num: int) -> list[SamplingParams]:
    """Greedy, plain, top-k, top-p, several completions, different lengths, every rule; every request with a seed."""
    kinds = [
        *({"temperature": 0}, {}, {"top_k": 9}, {"top_p": 0.7}, {"n": 3}, {"temperature": 3.0, "top_k": 50}),
        {"presence_penalty": 2, "frequency_penalty": 0.5, "n": 2},
        {"repetition_penalty": 1.8, "n": 3},
        {"temperature": 0, "repetition_penalty": 1.2, "frequency_penalty": 0.5},
        {"min_p": 0.2, "temperature": 2.0},
        {"logit_bias": {50: 6, 51: 6, 52: 5.5}},
        {"allowed_token_ids": [40, 50, 60, 70], "bad_words": ["$$", "..B"]},  # tokens 40 and 50 are $ and .
    ]
    return [
        SamplingParams(seed=i, max_tokens=3 + i % 7, ignore_eos=bool(i % 2), **kinds[i % len(kinds)])
        for i in range(num)
    ]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return tiny.shared_prompts(30)


@pytest.fixture(scope="module")
def params(prompts) -> list[SamplingParams]:
    return mixed_params(len(prompts))


@pytest.fixture(scope="module")
def expected(tiny_llm, prompts, params) -> list[list[list[int]]]:
    """The tokens of every request run alone."""
    return [tokens(generate(tiny_llm, [prompt], p))[0] for prompt, p in zip(prompts, params, strict=True)]


# What an output is.


def test_outputs_stand_in_the_order_of_the_prompts(tiny_llm, prompts, params):
    outputs = generate(tiny_llm, prompts, params)
    assert [output.prompt_token_ids for output in outputs] == prompts
    assert [output.request_id for output in outputs] == [str(i) for i in range(len(prompts))]
    for output, p in zip(outputs, params, strict=True):
        assert output.finished
        assert output.prompt is None
        assert [completion.index for completion in output.outputs] == list(range(p.n))
        assert all(1 <= len(completion.token_ids) <= p.max_tokens for completion in output.outputs)


def test_text_and_logprob_are_those_of_the_tokens(tiny_llm, tiny_dir, prompts, params):
    model = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32).eval()
    outputs = generate(tiny_llm, prompts, [SamplingParams(max_tokens=6, seed=i) for i in range(len(prompts))])
    continuations = [output.outputs[0].token_ids for output in outputs]
    for output, logits in zip(outputs, transformers_logits(model, prompts, continuations), strict=True):
        (completion,) = output.outputs
        ids = torch.tensor(completion.token_ids)
        logprob = torch.log_softmax(logits.double(), dim=-1).gather(1, ids[:, None]).sum()
        assert completion.cumulative_logprob == pytest.approx(float(logprob), abs=1e-3)
        text_ids = completion.token_ids[:-1] if completion.finish_reason == "stop" else completion.token_ids
        assert completion.text == decode(tiny_llm, text_ids)


def test_tokens_are_drawn_from_transformers_logits_by_seed_prompt_and_position(tiny_llm, tiny_dir, prompts):
    model = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32).eval()
    params = [SamplingParams(max_tokens=6, seed=i, top_k=40, ignore_eos=True, n=2) for i in range(len(prompts))]
    for index, [_, second] in enumerate(tokens(generate(tiny_llm, prompts, params))):
        (logits,) = transformers_logits(model, [prompts[index]], [second])
        one = Requests([params[index]], [], seeds=[stream_seed(str(index), 1, prompts[index])])
        drawn = [one.sample(logits[i : i + 1], one.rows([0], [i]), CpuOps())[0] for i in range(6)]
        assert np.concatenate(drawn).tolist() == second


@pytest.mark.parametrize("form", PROMPT_FORMS.values(), ids=PROMPT_FORMS)
def test_every_form_of_a_prompt_is_the_same_prompt(tiny_llm, form):
    text = "Grüße, 世界!"
    ids = tiny_llm.get_tokenizer()(text)["input_ids"]
    (output,) = generate(tiny_llm, form(text, ids))
    assert output.prompt_token_ids == ids
    assert output.prompt in (text, None)
    assert tokens([output]) == tokens(generate(tiny_llm, [ids]))


def test_text_and_tokens_mix_in_one_job(tiny_llm):
    texts = ["first", [50, 60, 70], {"prompt": "third"}, {"prompt_token_ids": [80]}]
    outputs = generate(tiny_llm, texts)
    assert [output.prompt for output in outputs] == ["first", None, "third", None]
    assert tokens(outputs) == [tokens(generate(tiny_llm, [text]))[0] for text in texts]


def test_sampling_params_come_as_none_one_or_one_each(tiny_llm, prompts):
    assert {len(completion) for [completion] in tokens(generate(tiny_llm, prompts[:3], None))} <= set(range(1, 17))
    assert tokens(generate(tiny_llm, prompts[:3], GREEDY)) == tokens(generate(tiny_llm, prompts[:3], [GREEDY] * 3))
    lengths = [SamplingParams(max_tokens=i + 1, ignore_eos=True) for i in range(3)]
    assert [len(completion) for [completion] in tokens(generate(tiny_llm, prompts[:3], lengths))] == [1, 2, 3]


def test_no_prompts_give_no_outputs(tiny_llm):
    assert generate(tiny_llm, []) == []
    assert tiny_llm.stats["num_requests"] == tiny_llm.stats["output_tokens"] == 0


def test_chat_renders_the_template_and_opens_the_answer(tiny_llm):
    conversation = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    (output,) = tiny_llm.chat(conversation, GREEDY, use_tqdm=False)
    rendered = "<bos>user: hi<end><bos>assistant: ho<end><bos>assistant: "
    assert tiny_llm.get_tokenizer().decode(output.prompt_token_ids) == rendered
    assert output.prompt_token_ids.count(1) == 3, "each <bos> is the special token, and none is added"
    assert tokens([output]) == tokens(generate(tiny_llm, tiny.encode(tiny_llm, rendered)))


def test_chat_takes_many_conversations_and_template_options(tiny_llm):
    conversations = [[{"role": "user", "content": text}] for text in ("a", "b", "a")]
    outputs = tiny_llm.chat(conversations, GREEDY, use_tqdm=False, add_generation_prompt=False)
    assert [tiny_llm.get_tokenizer().decode(output.prompt_token_ids) for output in outputs] == [
        f"<bos>user: {text}<end>" for text in ("a", "b", "a")
    ]
    assert tokens(outputs)[0] == tokens(outputs)[2]
    (given,) = tiny_llm.chat(conversations[0], GREEDY, use_tqdm=False, chat_template="{{ messages[0].content }}!")
    assert given.prompt_token_ids == tiny.encode(tiny_llm, "a!")


def test_token_prompts_need_no_tokenizer(tiny_model, prompts):
    llm = LLM(tiny_model("qwen3"), dtype="float32")
    outputs = generate(llm, prompts[:4])
    assert {len(completion.token_ids) for output in outputs for completion in output.outputs} == {NUM_OUTPUT}
    assert {completion.text for output in outputs for completion in output.outputs} == {""}


# What tokens do not depend on.


def test_a_request_alone_gives_the_tokens_it_gives_in_a_batch(tiny_llm, prompts, params, expected):
    assert tokens(generate(tiny_llm, prompts, params)) == expected


def test_the_order_of_the_input_changes_no_tokens(tiny_llm, prompts, params, expected):
    order = random.Random(0).sample(range(len(prompts)), len(prompts))
    shuffled = generate(tiny_llm, [prompts[i] for i in order], [params[i] for i in order])
    assert tokens(shuffled) == [expected[i] for i in order]


@pytest.mark.parametrize(
    "options",
    [
        {"levels": 1},
        {"levels": 0},
        {"page_size": 1},
        {"page_size": 64},
        {"max_batch_tokens": 1},
        {"max_batch_tokens": 7, "page_size": 3},
        {"kv_cache_tokens": 80, "page_size": 2},
        {"kv_cache_tokens": 80, "page_size": 2, "levels": 0},
        {"num_threads": 2},
        {"seed": 9},
    ],
    ids=str,
)
def test_no_option_changes_tokens(tiny_dir, prompts, params, expected, options):
    llm = LLM(tiny_dir, dtype="float32", **options)
    assert tokens(generate(llm, prompts, params)) == expected
    if "kv_cache_tokens" in options:
        assert llm.stats["peak_kv_tokens"] <= 80


def job_that_outgrows_a_small_pool() -> tuple[list[list[int]], list[SamplingParams]]:
    """40 requests that come first in plan order and stop at once, so all are expected to be short; then 20 that
    are not. In a pool of 160 tokens the youngest must give way and come back."""
    quick = [[token, 9] for token in range(10, 50)]
    slow = [prompt for prompt in tiny.shared_prompts(50, seed=3) if len(prompt) > 12][:20]
    stop_at_once = SamplingParams(temperature=0, max_tokens=40, stop_token_ids=list(range(tiny.VOCAB_SIZE)))
    to_the_end = SamplingParams(temperature=0, max_tokens=40, min_tokens=40, frequency_penalty=1, bad_words=["ab"])
    return quick + slow, [stop_at_once] * len(quick) + [to_the_end] * len(slow)


@pytest.mark.parametrize("levels", [None, 1, 0])
def test_preemption_changes_no_tokens(tiny_dir, levels):
    prompts, params = job_that_outgrows_a_small_pool()
    roomy = LLM(tiny_dir, dtype="float32", levels=levels)
    tight = LLM(tiny_dir, dtype="float32", levels=levels, page_size=4, kv_cache_tokens=160)
    outputs = generate(tight, prompts, params)
    assert tokens(outputs) == tokens(generate(roomy, prompts, params))
    assert tight.stats["preemptions"] > 0
    assert tight.stats["recomputed_tokens"] > 0
    assert tight.stats["peak_kv_tokens"] <= 160
    assert roomy.stats["preemptions"] == roomy.stats["recomputed_tokens"] == 0


def test_what_is_left_in_the_pool_changes_no_tokens(tiny_dir, prompts, params, expected):
    llm = LLM(tiny_dir, dtype="float32", page_size=4, kv_cache_tokens=4000)
    assert tokens(generate(llm, prompts, params)) == expected
    pool = llm.engine.kv_cache
    with torch.inference_mode():
        for pages in (*pool.k_pages, *pool.v_pages):
            pages.fill_(float("nan"))
    assert tokens(generate(llm, prompts[::-1], params[::-1])) == expected[::-1]
    assert llm.engine.kv_cache is pool, "the pool is used again"


def test_a_small_job_before_a_large_one_leaves_it_the_whole_pool(tiny_dir, prompts, params, expected):
    llm = LLM(tiny_dir, dtype="float32", page_size=4)
    assert generate(llm, []) == []
    generate(llm, [[5]], SamplingParams(max_tokens=1))
    assert tokens(generate(llm, prompts, params)) == expected
    assert llm.stats["preemptions"] == 0


def test_a_pool_sized_by_us_stays_within_the_memory_available(tiny_dir, monkeypatch, prompts, params, expected):
    available_bytes = 150 * ModelConfig.from_directory(tiny_dir).kv_elements_per_token * 4
    monkeypatch.setattr("batchllm.device.kv_cache.available_memory_bytes", lambda: available_bytes)
    llm = LLM(tiny_dir, dtype="float32", page_size=4)
    assert tokens(generate(llm, prompts, params)) == expected
    pool = llm.engine.kv_cache
    assert available_bytes / 2 < sum(pages.nbytes for pages in (*pool.k_pages, *pool.v_pages)) < available_bytes


def test_an_abandoned_job_leaves_the_next_one_alone(tiny_dir, prompts, params, expected):
    llm = LLM(tiny_dir, dtype="float32", page_size=4, kv_cache_tokens=400)
    for stop_after in (1, 3):
        job = llm.generate_as_completed(prompts, params)
        for _ in range(stop_after):
            next(job)
        job.close()
    never_started = llm.generate_as_completed(prompts, params)
    assert tokens(generate(llm, prompts, params)) == expected
    assert sorted(index for index, _ in never_started) == list(range(len(prompts)))


def test_two_jobs_at_a_time_do_not_share_pages(tiny_dir, prompts, params, expected):
    """A job that is read slowly keeps its KV while another one runs."""
    llm = LLM(tiny_dir, dtype="float32", page_size=4, kv_cache_tokens=400)
    slow = llm.generate_as_completed(prompts, params)
    outputs = dict([next(slow)])
    assert tokens(generate(llm, prompts, params)) == expected
    outputs |= slow
    assert tokens([outputs[i] for i in range(len(prompts))]) == expected


# Randomness.


def test_a_seed_gives_the_same_tokens_twice_and_another_seed_others(tiny_llm, prompts):
    def run(seed: int) -> list:
        return tokens(generate(tiny_llm, prompts[:4], SamplingParams(seed=seed, max_tokens=20, ignore_eos=True)))

    assert run(1) == run(1)
    assert all(one != other for one, other in zip(run(1), run(2), strict=True))


def test_one_seed_for_many_prompts_is_not_one_noise(tiny_llm):
    prompts = [[9, 5 + i] for i in range(200)]
    params = SamplingParams(temperature=50.0, seed=42, max_tokens=1, ignore_eos=True)  # as good as uniform
    first = [ids[0] for [ids] in tokens(generate(tiny_llm, prompts, params))]
    assert len(set(first)) > 100, "of 260 tokens"
    assert first[::-1] == [ids[0] for [ids] in tokens(generate(tiny_llm, prompts[::-1], params))]
    assert tokens(generate(tiny_llm, [prompts[0]] * 2, params)) == [[[first[0]]]] * 2, "the same prompt is the same"


def test_completions_of_a_prompt_differ_and_fewer_are_the_first_of_more(tiny_llm, prompts):
    def run(n: int) -> list[list[int]]:
        return tokens(generate(tiny_llm, [prompts[0]], SamplingParams(n=n, seed=5, max_tokens=12, ignore_eos=True)))[0]

    six = run(6)
    assert len({tuple(completion) for completion in six}) == 6
    assert run(1) == six[:1]
    assert run(4) == six[:4]


def test_completions_stand_in_order_whichever_ends_first(tiny_llm, prompts):
    def run(**fields) -> RequestOutput:
        params = SamplingParams(n=8, seed=5, max_tokens=12, ignore_eos=True, **fields)
        return generate(tiny_llm, [prompts[0]], params)[0]

    stopped = run(stop_token_ids=list(range(0, tiny.VOCAB_SIZE, 2))).outputs
    assert [completion.index for completion in stopped] == list(range(8))
    assert len({len(completion.token_ids) for completion in stopped}) > 2
    for completion, free in zip(stopped, run().outputs, strict=True):
        assert completion.token_ids == free.token_ids[: len(completion.token_ids)]


def test_without_a_seed_the_model_seed_and_the_index_decide(tiny_dir, prompts):
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    job = [prompts[0], prompts[0], prompts[1]]
    seed_0, again, seed_1 = (tokens(generate(LLM(tiny_dir, dtype="float32", seed=s), job, params)) for s in (0, 0, 1))
    assert seed_0 == again
    assert seed_0[0] != seed_0[1], "equal prompts draw their own streams"
    assert all(one != other for one, other in zip(seed_0, seed_1, strict=True))


# Why a request ends.


@pytest.fixture(scope="module")
def free_run(tiny_llm, prompts) -> tuple[list[int], list[int]]:
    """A prompt, and 60 tokens that nothing stops, drawn with seed 0."""
    params = SamplingParams(seed=0, max_tokens=60, ignore_eos=True, temperature=0.8)
    [[ids]] = tokens(generate(tiny_llm, [prompts[0]], params))
    return prompts[0], ids


def run_with(llm: LLM, prompt: list[int], **fields):
    fields = {"seed": 0, "max_tokens": 60, "ignore_eos": True, "temperature": 0.8} | fields
    (output,) = generate(llm, [prompt], SamplingParams(**fields))
    (completion,) = output.outputs
    return completion


def ending(completion) -> tuple[list[int], str, int | str | None]:
    return completion.token_ids, completion.finish_reason, completion.stop_reason


def decode(llm: LLM, ids: list[int]) -> str:
    return llm.get_tokenizer().decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("max_tokens", [1, 2, 59])
def test_length_ends_a_request(tiny_llm, free_run, max_tokens):
    prompt, ids = free_run
    completion = run_with(tiny_llm, prompt, max_tokens=max_tokens)
    assert ending(completion) == (ids[:max_tokens], "length", None)
    assert completion.text == decode(tiny_llm, ids[:max_tokens])


@pytest.mark.parametrize("included", [False, True])
def test_a_stop_token_ends_a_request_and_is_its_reason(tiny_llm, free_run, included):
    prompt, ids = free_run
    stop = ids[20]
    end = ids.index(stop) + 1
    completion = run_with(tiny_llm, prompt, stop_token_ids=[stop, 3], include_stop_str_in_output=included)
    assert ending(completion) == (ids[:end], "stop", stop)
    assert completion.text == decode(tiny_llm, ids[: end if included else end - 1])


def test_a_stop_token_at_the_last_place_is_a_stop(tiny_llm, free_run):
    prompt, ids = free_run
    end = ids.index(ids[20]) + 1
    completion = run_with(tiny_llm, prompt, stop_token_ids=[ids[20]], max_tokens=end)
    assert (len(completion.token_ids), completion.finish_reason) == (end, "stop")


def test_end_of_sequence_ends_a_request_without_a_reason(tiny_dir, tmp_path, free_run):
    prompt, ids = free_run
    eos = ids[20]
    end = ids.index(eos) + 1
    directory = tiny.copy_with(tiny_dir, tmp_path / "model", "generation_config.json", eos_token_id=[eos, 1])
    llm = LLM(directory, dtype="float32")
    stopped = run_with(llm, prompt, ignore_eos=False)
    assert ending(stopped) == (ids[:end], "stop", None)
    assert stopped.text == decode(llm, ids[: end - 1])
    ignored = run_with(llm, prompt, ignore_eos=True)
    assert ending(ignored) == (ids, "length", None)
    asked_for = run_with(llm, prompt, ignore_eos=True, stop_token_ids=[eos])
    assert ending(asked_for) == (ids[:end], "stop", eos)


@pytest.mark.parametrize("included", [False, True])
def test_a_stop_string_ends_a_request_and_is_its_reason(tiny_llm, free_run, included):
    prompt, ids = free_run
    text = decode(tiny_llm, ids)
    stop = re.findall(r"[!-~]{2,}", text)[-1]
    completion = run_with(tiny_llm, prompt, stop=["never seen", stop], include_stop_str_in_output=included)
    before = text[: text.index(stop)]
    assert (completion.text, completion.stop_reason) == (before + stop if included else before, stop)
    assert completion.finish_reason == "stop"
    assert completion.token_ids == ids[: len(completion.token_ids)]
    assert decode(tiny_llm, completion.token_ids).endswith(stop), "it stops at the token that completes the string"


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_nothing_ends_a_request_before_min_tokens(tiny_llm, prompts, temperature):
    half = list(range(0, tiny.VOCAB_SIZE, 2))

    def run(min_tokens: int) -> list[list[int]]:
        common = {"temperature": temperature, "stop_token_ids": half, "max_tokens": 40, "min_tokens": min_tokens}
        params = [SamplingParams(seed=i, **common) for i in range(len(prompts))]
        return [ids for [ids] in tokens(generate(tiny_llm, prompts, params))]

    assert min(len(ids) for ids in run(0)) == 1, "half of all tokens stop a request soon"
    late = run(12)
    assert min(len(ids) for ids in late) == 13, "the first token that may end it is the one after"
    for ids in late:
        assert not set(ids[:12]) & {*half, tiny.EOS}
        assert ids[-1] in {*half, tiny.EOS} or len(ids) == 40


def test_without_max_tokens_a_request_fills_the_model(tiny_llm):
    prompt = [9] * (tiny.MAX_MODEL_LEN - 20)
    for max_tokens in (None, 21, 10**9):
        completion = run_with(tiny_llm, prompt, max_tokens=max_tokens)
        assert len(completion.token_ids) == 20
        assert (completion.finish_reason, completion.stop_reason) == ("length", "max_model_len")
    completion = run_with(tiny_llm, prompt, max_tokens=20)
    assert (len(completion.token_ids), completion.stop_reason) == (20, None), "its own limit, not the model's"


def test_the_longest_prompt_leaves_one_token(tiny_llm):
    assert tiny_llm.max_model_len == tiny.MAX_MODEL_LEN
    assert len(run_with(tiny_llm, [9] * (tiny.MAX_MODEL_LEN - 1)).token_ids) == 1


# What is counted.


@pytest.mark.parametrize("levels", [None, 1, 0])
def test_every_prompt_token_is_computed_or_cached(tiny_dir, prompts, params, levels):
    llm = LLM(tiny_dir, dtype="float32", levels=levels)
    generate(llm, prompts, params)
    assert llm.stats["prompt_tokens"] == sum(len(prompt) * p.n for prompt, p in zip(prompts, params, strict=True))
    outputs = generate(llm, prompts, [msgspec.structs.replace(p, n=1) for p in params])
    stats = llm.stats
    num_cached = sum(output.num_cached_tokens for output in outputs)
    assert num_cached == stats["prompt_tokens"] - stats["computed_prompt_tokens"]
    assert (stats["computed_prompt_tokens"] < stats["prompt_tokens"]) == (levels != 0)


def test_completions_share_all_of_the_prompt_but_its_last_token(tiny_llm, prompts):
    prompt = max(prompts, key=len)
    (output,) = generate(tiny_llm, [prompt], SamplingParams(n=6, max_tokens=2))
    assert tiny_llm.stats["computed_prompt_tokens"] == len(prompt) + 5
    assert output.num_cached_tokens == 0  # the prompt itself was computed, by whichever completion came first
    twice = generate(tiny_llm, [prompt, prompt], SamplingParams(n=6, max_tokens=2))
    # Each completion of a copy computes only the last token.
    assert sorted(output.num_cached_tokens for output in twice) == [0, len(prompt) - 6]


def test_stats_describe_the_last_job(tiny_llm, prompts, params):
    outputs = generate(tiny_llm, prompts, params)
    stats = tiny_llm.stats
    assert set(stats) == STATS
    assert set(stats["seconds"]) == PHASES
    assert stats["num_requests"] == sum(p.n for p in params)
    assert stats["output_tokens"] == sum(len(ids) for output in tokens(outputs) for ids in output)
    longest = max(len(ids) for output in tokens(outputs) for ids in output)
    assert longest <= stats["steps"] <= stats["output_tokens"] + stats["computed_prompt_tokens"]
    assert stats["preemptions"] == stats["recomputed_tokens"] == 0
    assert 0 < stats["peak_kv_tokens"] <= stats["computed_prompt_tokens"] + stats["output_tokens"] + 16 * 100
    seconds = stats["seconds"]
    phases = sum(seconds[phase] for phase in PHASES - {"load", "total"})
    assert 0 < phases <= seconds["total"]
    assert stats["num_threads"] == 1
    assert 0 < stats["cpu_s"] <= seconds["total"]
    generate(tiny_llm, [[5]], SamplingParams(max_tokens=1))
    assert (tiny_llm.stats["num_requests"], tiny_llm.stats["output_tokens"], tiny_llm.stats["steps"]) == (1, 1, 1)


def test_as_completed_yields_every_index_once_and_the_short_before_the_long(tiny_llm, prompts):
    params = [SamplingParams(max_tokens=40 if i % 2 else 2, ignore_eos=True) for i in range(10)]
    indices = [index for index, _ in tiny_llm.generate_as_completed(prompts[:10], params)]
    assert sorted(indices) == list(range(10))
    assert {index % 2 for index in indices[:5]} == {0}


@pytest.mark.parametrize("kv_cache_tokens", [None, 160])
def test_progress_grows_to_the_whole_job(tiny_dir, kv_cache_tokens):
    prompts, params = job_that_outgrows_a_small_pool()
    seen = []
    llm = LLM(tiny_dir, dtype="float32", page_size=4, kv_cache_tokens=kv_cache_tokens)
    outputs = [output for _, output in llm.generate_as_completed(prompts, params, on_progress=seen.append)]
    for name in ("finished_requests", "scheduled_prompt_tokens", "saved_prompt_tokens", "output_tokens", "elapsed_s"):
        values = [getattr(progress, name) for progress in seen]
        assert values == sorted(values), name
    last = seen[-1]
    assert last.num_requests == last.finished_requests == 60
    assert last.scheduled_prompt_tokens == sum(map(len, prompts))
    assert last.remaining_output_tokens == last.remaining_prompt_tokens == 0
    to_compute = {p.remaining_prompt_tokens + p.scheduled_prompt_tokens - p.saved_prompt_tokens for p in seen}
    assert len(to_compute) == 1
    assert last.ended_early == sum(
        len(o.outputs[0].token_ids) < p.max_tokens for o, p in zip(outputs, params, strict=True)
    )
    for progress in seen:
        states = (progress.waiting_requests, progress.running_requests, progress.finished_requests)
        assert sum(states) == progress.num_requests
        assert progress.kv_tokens <= progress.peak_kv_tokens <= progress.kv_cache_tokens
    for name in ("computed_prompt_tokens", "recomputed_tokens", "steps", "preemptions", "peak_kv_tokens"):
        assert getattr(last, name) == llm.stats[name], name
    budget = sum(p.max_tokens for p in params)
    assert all(progress.output_tokens + progress.remaining_output_tokens <= budget for progress in seen)
    assert last.saved_prompt_tokens == sum(output.num_cached_tokens for output in outputs)
    assert last.output_tokens == llm.stats["output_tokens"]
    assert (llm.stats["preemptions"] > 0) == (kv_cache_tokens is not None)


def test_a_callable_takes_tqdms_place(tiny_llm, prompts):
    bar = MagicMock()
    tiny_llm.generate(prompts[:5], GREEDY, use_tqdm=bar)
    assert bar.call_args.kwargs["total"] == 5
    assert sum(call.args[0] for call in bar().update.call_args_list) == 5
    assert "output toks/s" in bar().set_postfix_str.call_args.args[0]
    bar().close.assert_called_once_with()


@pytest.mark.parametrize("use_tqdm", [True, False])
def test_the_progress_bar_shows_unless_it_is_switched_off(tiny_llm, prompts, capsys, use_tqdm):
    tiny_llm.generate(prompts[:5], GREEDY, use_tqdm=use_tqdm)
    assert ("Processed prompts" in capsys.readouterr().err) == use_tqdm


def test_asking_again_gives_other_samples_unless_a_seed_is_named(tiny_dir):
    def ask(llm: LLM, **options) -> list[list[int]]:
        params = SamplingParams(temperature=1.5, max_tokens=12, ignore_eos=True, **options)
        return tokens(generate(llm, [[9, 10, 11]], params))

    llm, fresh = LLM(tiny_dir, dtype="float32"), LLM(tiny_dir, dtype="float32")
    first, second = ask(llm), ask(llm)
    assert first != second
    assert (ask(fresh), ask(fresh)) == (first, second)
    assert ask(llm, seed=7) == ask(llm, seed=7)


def test_numpy_prompts_come_back_as_plain_integers(tiny_llm):
    for prompt in (np.array([5, 6]), list(np.array([5, 6])), (5, 6)):
        (output,) = generate(tiny_llm, [prompt], SamplingParams(max_tokens=1))
        assert [type(token) for token in output.prompt_token_ids] == [int, int]


# Models that are broken.


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", "model.layers.1.self_attn.o_proj.weight"])
def test_a_job_stops_at_the_first_step_whose_logits_are_not_finite(tiny_dir, tmp_path, name, value):
    directory = tiny.copy_with(tiny_dir, tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    tensors[name].view(-1)[7] = value
    save_file(tensors, directory / "model.safetensors")
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(ValueError, match=r"^the logits are not finite since step 1 of the job: "):
            generate(LLM(directory, dtype=dtype), [[5], [6, 7]])


def test_what_was_answered_before_the_logits_were_not_finite_is_kept(tiny_dir, tmp_path):
    """The embedding of one token is broken: requests that meet it come after those that are answered."""
    directory = tiny.copy_with(tiny_dir, tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    tensors["model.embed_tokens.weight"][200] = float("nan")
    save_file(tensors, directory / "model.safetensors")
    llm = LLM(directory, dtype="float32", max_batch_tokens=2, levels=0)
    outputs = llm.generate_as_completed([[5], [200] * 9], [SamplingParams(max_tokens=1)] * 2)
    assert next(outputs)[0] == 0
    with pytest.raises(ValueError, match=r"^the logits are not finite since step \d of the job: "):
        next(outputs)


# What ends a request.


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_whichever_file_names_an_end_of_sequence_it_is_one(tiny_llm, tiny_dir, tmp_path, file):
    free = SamplingParams(temperature=0, max_tokens=4)
    token = generate(tiny_llm, [[5]], free)[0].outputs[0].token_ids[0]
    assert token != tiny.EOS
    content = tiny_llm.get_tokenizer().convert_ids_to_tokens(token)
    changes = {"eos_token": content} if file.startswith("tokenizer") else {"eos_token_id": [2, token, 99999]}
    directory = tiny.copy_with(tiny_dir, tmp_path / "model", "generation_config.json", eos_token_id=None)
    tiny.copy_with(directory, tmp_path / "changed", file, **changes)
    llm = LLM(tmp_path / "changed", dtype="float32")
    (completion,) = generate(llm, [[5]], free)[0].outputs
    assert (completion.token_ids, completion.finish_reason, completion.stop_reason) == ([token], "stop", None)
    assert len(run_with(llm, [5], max_tokens=4, min_tokens=3).token_ids) >= 3
    assert len(run_with(llm, [5], max_tokens=4).token_ids) == 4


def test_min_tokens_where_every_token_ends_the_request_is_refused(tiny_llm):
    all_but_eos = [token for token in range(tiny.VOCAB_SIZE) if token != tiny.EOS]
    params = SamplingParams(stop_token_ids=all_but_eos, min_tokens=1)
    message = "^prompt 1: min_tokens: 1, but each of the 260 tokens of the vocabulary ends the request$"
    with pytest.raises(ValueError, match=message):
        generate(tiny_llm, [[5], [6]], [GREEDY, params])
    every = SamplingParams(stop_token_ids=[*all_but_eos, tiny.EOS], ignore_eos=True, min_tokens=2)
    with pytest.raises(ValueError, match=r"^prompt 0: min_tokens: 2, but"):
        generate(tiny_llm, [[5]], every)
    (output,) = generate(tiny_llm, [[5]], msgspec.structs.replace(params, ignore_eos=True, max_tokens=3))
    assert output.outputs[0].token_ids[0] == tiny.EOS, "the only token that may come first"


# Which tokens may come.


def test_bad_words_do_not_come_and_nothing_else_is_held_back(tiny_llm, prompts):
    free = generate(tiny_llm, prompts)
    texts = [output.outputs[0].text for output in free]
    words = [next(text[at : at + 2] for at in range(9) if text[at : at + 2].isascii()) for text in texts[:3]]
    params = msgspec.structs.replace(GREEDY, bad_words=words)
    for text, output in zip(texts, generate(tiny_llm, prompts, params), strict=True):
        assert not any(word in output.outputs[0].text for word in words)
        if not any(word in text for word in words):
            assert output.outputs[0].text == text


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_request_that_is_left_with_no_token_ends_alone_with_an_error(tiny_llm, temperature):
    fields = {"temperature": temperature, "seed": 0, "max_tokens": 5, "ignore_eos": True}
    a, b = tiny.encode(tiny_llm, "ab")
    params = [
        SamplingParams(allowed_token_ids=[a], bad_words=["a"], **fields),
        SamplingParams(allowed_token_ids=[a], bad_words=["aaa"], **fields),
        SamplingParams(allowed_token_ids=[0], bad_words=["<pad>"], **fields),
        SamplingParams(allowed_token_ids=[a, b], logit_bias={b: 100}, **fields),
    ]
    outputs = generate(tiny_llm, [[token] for token in range(5, 9)], params)
    *left, fine = (output.outputs[0] for output in outputs)
    for completion, num_tokens in zip(left, [1, 3, 1], strict=True):
        assert completion.finish_reason == "error"
        assert "leave no token to draw" in completion.stop_reason
        assert len(completion.token_ids) == num_tokens
    assert (fine.text, fine.finish_reason) == ("bbbbb", "length")


def test_min_tokens_where_every_allowed_token_ends_the_request_is_refused(tiny_llm):
    params = SamplingParams(allowed_token_ids=[tiny.EOS, 9], stop_token_ids=[9], min_tokens=1)
    with pytest.raises(ValueError, match=r"^prompt 0: min_tokens: 1, but each of allowed_token_ids ends"):
        generate(tiny_llm, [[5]], params)
    (output,) = generate(tiny_llm, [[5]], msgspec.structs.replace(params, ignore_eos=True))
    assert output.outputs[0].token_ids[0] == tiny.EOS


@pytest.mark.parametrize(
    "fields",
    [{"allowed_token_ids": [5, 260]}, {"logit_bias": {260: 1.0}}, {"logprob_token_ids": [260]}],
    ids=str,
)
def test_a_token_that_the_vocabulary_lacks_is_refused(tiny_llm, fields):
    [name] = fields
    with pytest.raises(ValueError, match=f"^prompt 0: {name}: 260, but the vocabulary has 260 tokens$"):
        generate(tiny_llm, [[5]], SamplingParams(**fields))


def test_bad_words_need_a_tokenizer(tiny_model):
    llm = LLM(tiny_model("llama"), dtype="float32")
    with pytest.raises(ValueError, match="tokenizer"):
        generate(llm, [[5]], SamplingParams(bad_words=["a"]))
    assert llm.engine.num_live == 0
