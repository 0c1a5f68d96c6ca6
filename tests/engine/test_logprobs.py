"""Log-probabilities of the output's tokens and of the prompt's: under the model, whatever is drawn and shared."""

import math

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from batchllm import LLM, SamplingParams
from batchllm.outputs import Logprob, RequestOutput
from batchllm.sampling.logprobs import output_logprobs
from tests.engine import tiny
from tests.engine.rows import Requests

pytestmark = pytest.mark.usefixtures("one_thread")

HEAD = [10, 11, 12, 13, 14]
# Readers of one shared row with different next tokens, the same prompt twice, prompts of one token and two.
PROMPTS = [[*HEAD, 20, 21], [*HEAD, 30, 31, 32], [*HEAD, 20, 22], [*HEAD, 20, 22], [5], [5, 6], HEAD]
COUNTS = [0, 1, 2, 3, -1, 2, 0]
OPTIONS = [{}, {"max_batch_tokens": 5}, {"levels": 0}, {"page_size": 1}]


def params(**fields) -> list[SamplingParams]:
    """For PROMPTS, drawn in ways that change what the model says."""
    kinds = [{"temperature": 0}, {"top_k": 3}, {"allowed_token_ids": [50, 60, 70]}, {"repetition_penalty": 3.0}]
    return [
        SamplingParams(seed=i, ignore_eos=True, max_tokens=4, n=1 + i % 3, **kinds[i % len(kinds)], **fields)
        for i in range(len(PROMPTS))
    ]


def generate(llm: LLM, prompts, params) -> list[RequestOutput]:
    return llm.generate(prompts, params, use_tqdm=False)


def with_counts(**fields) -> list[SamplingParams]:
    return [
        msgspec.structs.replace(p, logprobs=count, prompt_logprobs=count)
        for p, count in zip(params(**fields), COUNTS, strict=True)
    ]


@pytest.fixture(scope="module")
def model(tiny_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32).eval()


def transformers_logprobs(model, token_ids: list[int]) -> torch.Tensor:
    """float64 [tokens, vocab_size]: row i is of what follows token i."""
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([token_ids])).logits[0].double(), dim=-1)


def assert_entry(entry: dict[int, Logprob], row: torch.Tensor, tokens: set[int]) -> None:
    """Of exactly these tokens."""
    assert set(entry) == tokens
    for token, logprob in entry.items():
        assert logprob.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert logprob.rank == 1 + int((row > row[token]).sum())


def likeliest(row: torch.Tensor, count: int) -> set[int]:
    return set(row.topk(len(row) if count < 0 else count).indices.tolist())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_logprobs_are_transformers(tiny_dir, model, options):
    llm = LLM(tiny_dir, dtype="float32", **options)
    for prompt, count, output in zip(PROMPTS, COUNTS, generate(llm, PROMPTS, with_counts()), strict=True):
        rows = transformers_logprobs(model, prompt)
        first, *others = output.prompt_logprobs
        assert first is None
        for row, token, entry in zip(rows, prompt[1:], others, strict=False):
            assert_entry(entry, row, {token, *likeliest(row, count)})
        assert len(others) == len(prompt) - 1
        for completion in output.outputs:
            rows = transformers_logprobs(model, prompt + completion.token_ids)[len(prompt) - 1 : -1]
            for row, token, entry in zip(rows, completion.token_ids, completion.logprobs, strict=True):
                assert_entry(entry, row, {token, *likeliest(row, count)})
                assert next(iter(entry)) == token, "the sampled one stands first"
            total = sum(
                entry[token].logprob for token, entry in zip(completion.token_ids, completion.logprobs, strict=True)
            )
            assert completion.cumulative_logprob == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("start", [1, 3, 6, 7, 99])
def test_log_probabilities_of_a_prompt_may_start_later(tiny_llm, start):
    whole = SamplingParams(prompt_logprobs=1, max_tokens=1, n=2)
    part = msgspec.structs.replace(whole, prompt_logprobs_start=start)
    for all_of_it, output in zip(generate(tiny_llm, PROMPTS, whole), generate(tiny_llm, PROMPTS, part), strict=True):
        expected = all_of_it.prompt_logprobs
        assert len(output.prompt_logprobs) == len(expected) == len(output.prompt_token_ids)
        for position, entry in enumerate(output.prompt_logprobs):
            if position < start:
                assert entry is None
                continue
            assert entry.keys() == expected[position].keys()
            assert all(entry[i].logprob == pytest.approx(expected[position][i].logprob, abs=1e-5) for i in entry)


def test_logprobs_of_named_tokens_stand_beside_those_of_the_likeliest(tiny_llm, model):
    named = [200, 7, 7, 100]
    for count in (None, 2):
        for output in generate(tiny_llm, PROMPTS, params(logprob_token_ids=named, logprobs=count)):
            for completion in output.outputs:
                prompt = output.prompt_token_ids
                rows = transformers_logprobs(model, prompt + completion.token_ids)[len(prompt) - 1 : -1]
                for row, token, entry in zip(rows, completion.token_ids, completion.logprobs, strict=True):
                    assert_entry(entry, row, {token, *named, *likeliest(row, count or 0)})


def test_logprobs_change_no_token_and_are_told_only_where_they_are_asked_for(tiny_llm):
    plain = generate(tiny_llm, PROMPTS, params())
    told = generate(tiny_llm, PROMPTS, with_counts())
    for without, output in zip(plain, told, strict=True):
        assert [c.token_ids for c in without.outputs] == [c.token_ids for c in output.outputs]
        assert all(completion.logprobs is None for completion in without.outputs)
        assert without.prompt_logprobs is None
    asks = [with_counts()[i] if i % 2 else params()[i] for i in range(len(PROMPTS))]
    for i, output in enumerate(generate(tiny_llm, PROMPTS, asks)):
        assert all((completion.logprobs is not None) == bool(i % 2) for completion in output.outputs)


@pytest.mark.parametrize("asked", ["logprobs", "prompt_logprobs"])
def test_the_texts_of_tokens_are_what_they_add_to_a_text(tmp_path, asked):
    """A tokenizer that drops the first space would show none of the spaces."""
    model = tiny.Family("Llama", {"vocab_size": 290}).model()
    directory = tiny.save(model, tmp_path / "model")
    tiny.save_metaspace_tokenizer(directory)
    llm = LLM(directory, dtype="float32")
    prompt = [tiny.BOS, *tiny.encode(llm, "the cat the")]
    params = SamplingParams(temperature=0, max_tokens=2, **{asked: -1})
    (output,) = generate(llm, [prompt], params)
    entry = (output.outputs[0].logprobs if asked == "logprobs" else output.prompt_logprobs)[1]
    (the,) = tiny.encode(llm, "the")
    (_, letter) = tiny.encode(llm, "q")
    assert (entry[the].decoded_token, entry[letter].decoded_token) == (" the", "q")
    assert entry[tiny.EOS].decoded_token == "<eos>"
    assert entry[tiny.NUM_SPECIAL + 0xC3].decoded_token == "\ufffd"


def test_a_logit_of_minus_infinity_has_that_log_probability():
    requests = Requests([SamplingParams(logprobs=-1)], [])
    requests.table[0].logprobs = []
    logits, drawn = torch.tensor([[0.0, -torch.inf, 0.0]]), torch.tensor([2], dtype=torch.int32)
    output_logprobs(logits, requests.rows([0], [0]), drawn)()
    (entry,) = requests.table[0].logprobs
    assert entry[1].logprob == -math.inf
    assert entry[2] == Logprob(pytest.approx(-math.log(2)), 2)  # token 0 comes before
