"""Scores of given continuations are transformers' teacher-forced log-probabilities, and cost what their trie has."""

import math
import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from batchllm import LLM, SamplingParams
from batchllm.continuations import continuation_of
from batchllm.engine.logits_reader import SCORED_AT_ONCE
from batchllm.outputs import ContinuationScore
from tests.engine import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

HEAD = list(range(10, 40))


@pytest.fixture(scope="module")
def model(tiny_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32).eval()


def expected(model, before: list[int], continuation: list[int]) -> tuple[list[float], bool]:
    with torch.inference_mode():
        logits = model(torch.tensor([before + continuation])).logits[0, len(before) - 1 : -1].double()
    logprobs = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(continuation)[:, None])[:, 0]
    return logprobs.tolist(), logits.argmax(dim=-1).tolist() == continuation


def assert_score(score: ContinuationScore, model, before: list[int], continuation: list[int]) -> None:
    logprobs, is_greedy = expected(model, before, continuation)
    assert score.token_ids == continuation
    assert score.logprobs == pytest.approx(logprobs, abs=1e-4)
    assert score.logprob == pytest.approx(sum(logprobs), abs=1e-3)
    assert score.mean_logprob == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-4)
    assert score.is_greedy == is_greedy


@pytest.mark.parametrize("options", [{}, {"max_batch_tokens": 5}, {"levels": 0}, {"kv_cache_tokens": 160}], ids=str)
def test_scores_are_transformers(tiny_dir, model, options):
    llm = LLM(tiny_dir, dtype="float32", page_size=4, **options)
    generator = random.Random(0)
    prompts = [*(HEAD[: generator.randint(1, 30)] for _ in range(6)), [*HEAD, 50], HEAD, [5]]
    greedy = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True), use_tqdm=False)
    continuations = [
        [
            output.outputs[0].token_ids,
            *([generator.randrange(4, 60) for _ in range(generator.randint(1, 6))] for _ in range(4)),
            *([50, 60], [50, 61], [50], [51], [51]),
        ]
        for output in greedy
    ]
    for prompt, mine, scores in zip(prompts, continuations, llm.score(prompts, continuations), strict=True):
        assert scores[0].is_greedy
        for continuation, score in zip(mine, scores, strict=True):
            assert_score(score, model, prompt, continuation)
    assert llm.engine.num_live == 0
    llm.engine.audit()


def test_more_rows_are_scored_than_logits_are_made_of_at_once(tiny_llm, model):
    generator = random.Random(1)
    ids = [generator.randrange(4, 60) for _ in range(SCORED_AT_ONCE + 40)]
    [[score]] = tiny_llm.score([ids[:3]], [[ids[3:]]])
    assert tiny_llm.stats["steps"] == 1
    assert_score(score, model, ids[:3], ids[3:])


def test_choices_of_one_token_are_one_request_without_anything_decoded(tiny_llm):
    choices = [[token] for token in range(40, 60)]
    scores = tiny_llm.score([HEAD, [*HEAD, 7]], choices)
    assert [len(of_prompt) for of_prompt in scores] == [20, 20]
    assert (tiny_llm.stats["num_requests"], tiny_llm.stats["steps"]) == (2, 1)
    assert tiny_llm.stats["computed_prompt_tokens"] <= len(HEAD) + 2


def test_a_text_may_be_one_token_longer_than_what_the_model_takes(tiny_llm, model):
    """Nothing is computed of its last token."""
    generator = random.Random(3)
    text = [generator.randrange(4, 60) for _ in range(tiny.MAX_MODEL_LEN + 1)]
    ((score,),) = tiny_llm.score([text[:1]], [[text[1:]]])
    assert_score(score, model, text[:1], text[1:])
    ((last,),) = tiny_llm.score([text[:-1]], [[text[-1:]]])
    assert_score(last, model, text[:-1], text[-1:])


def test_of_equal_tokens_the_first_is_greedy(tmp_path):
    """As is decoded."""
    model = tiny.FAMILIES["llama"].model()
    with torch.no_grad():
        model.lm_head.weight[100:200] = model.lm_head.weight[4:104].clone()
    llm = LLM(tiny.save(model, tmp_path / "model"), dtype="float32")
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=0)
    greedy = [output.outputs[0].token_ids for output in llm.generate([HEAD, [5], [6]], params, use_tqdm=False)]
    twins = [[token + 96 if 4 <= token < 100 else token - 96] for (token,) in greedy]
    assert all(4 <= token < 200 for (token,) in greedy)
    for prompt, token, twin in zip([HEAD, [5], [6]], greedy, twins, strict=True):
        (first, second), (longer,) = llm.score([prompt] * 2, [[token, twin], [[*twin, 50]]])
        assert first.logprobs == second.logprobs == pytest.approx(longer.logprobs[:1])
        assert [first.is_greedy, second.is_greedy, longer.is_greedy] == [True, False, False]


def test_what_continuations_share_is_computed_once(tiny_llm):
    shared = [70, 71, 72, 73]
    scores = tiny_llm.score(HEAD, [[*shared, a, b] for a in (80, 81, 82) for b in (90, 91)])
    assert len(scores[0]) == 6
    assert tiny_llm.stats["num_requests"] == 3
    assert tiny_llm.stats["computed_prompt_tokens"] <= len(HEAD) + len(shared) + 3


def test_texts_are_scored_as_the_tokens_of_the_whole_text(tiny_llm, model):
    prompts, continuations = ["The capital is", "Zażó"], [" Reykjavík", "?"]
    for prompt, scores in zip(prompts, tiny_llm.score(prompts, continuations), strict=True):
        (before,) = tiny_llm.tokenize([prompt])
        for text, score in zip(continuations, scores, strict=True):
            assert_score(score, model, before, tiny.encode(tiny_llm, text))
    by_ids = tiny_llm.score(tiny_llm.tokenize(prompts), continuations)
    assert by_ids == tiny_llm.score(prompts, continuations)
    assert tiny_llm.score([{"prompt": "a"}], [np.array([50, 51])]) == tiny_llm.score("a", [[50, 51]])


def test_a_tokenizer_may_join_the_prompts_end_with_what_follows():
    together = continuation_of([1, 2, 3], [1, 2, 9, 5])
    assert (together.token_ids, together.begin) == ([1, 2, 9, 5], 2)
    with pytest.raises(ValueError, match="at least one token after the prompt"):
        continuation_of([1, 2, 3], [1, 2, 3])
    with pytest.raises(ValueError, match="a prompt of at least one token"):
        continuation_of([1], [2, 3])


def test_a_choice_is_the_likeliest_and_has_a_probability(tiny_llm, model):
    choices = [[50], [60, 61, 62], [70]]
    for per_token in (False, True):
        for prompt, choice in zip([HEAD, [5]], tiny_llm.choose([HEAD, [5]], choices, per_token=per_token), strict=True):
            sums = [sum(expected(model, prompt, c)[0]) / (len(c) if per_token else 1) for c in choices]
            assert choice.index == int(np.argmax(sums))
            assert choice.probabilities == pytest.approx(torch.softmax(torch.tensor(sums), 0).tolist(), abs=1e-4)
            assert [score.token_ids for score in choice.scores] == choices
    certain = tiny_llm.choose(HEAD, [[50]])
    assert (certain[0].index, certain[0].probabilities) == (0, [1.0])


def test_the_perplexity_of_a_text_is_transformers_loss(tiny_llm, model):
    texts = ["Once upon a time", "x", "Once upon a time there was"]
    for ids, perplexity in zip(tiny_llm.tokenize(texts), tiny_llm.perplexity(texts), strict=True):
        with torch.inference_mode():
            loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
        assert perplexity == pytest.approx(math.exp(float(loss)), rel=1e-4)


@pytest.mark.parametrize(
    ("prompts", "continuations", "message"),
    [
        ([[5], [6]], [], r"^continuations: expected a non-empty list, got \[\]$"),
        ([[5], [6]], "no", "^continuations: expected a non-empty list, got 'no'$"),
        ([[5], [6]], [["a"]], "^continuations: expected a list for each of 2 prompts, got 1 lists$"),
        ([[5], [6]], [["a"], []], r"^continuations\[1\]: expected a non-empty list of texts or token ids, got \[\]$"),
        ([[5], [6]], [["a"], [3.5]], r"^continuations\[1\]: expected a non-empty list of texts or token ids, got "),
        ([[5], [6]], [["a"], ["b", ""]], "^prompt 1: continuation 1: expected at least one token after the prompt$"),
        ([[5], [6]], [[7], [8, 260]], r"^prompt 0: continuation 1: logprob_token_ids: 260, but the vocabulary has"),
        ([[5], [6]], [[7], [260, 8]], r"^prompt 0: continuation 1: prompt_token_ids\[1\] is 260, but the vocabulary"),
        ([[5] * 512], [[7], [8, 9]], "^prompt 0: continuation 1: the prompt has 513 tokens, and the model takes 512$"),
        ([[]], [[7]], "^prompt 0: continuation 0: expected a prompt of at least one token"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_place_before_anything_runs(tiny_llm, prompts, continuations, message):
    with pytest.raises(ValueError, match=message):
        tiny_llm.score(prompts, continuations)
    assert tiny_llm.engine.num_live == 0


def test_a_text_without_a_second_token_has_no_perplexity(tiny_llm):
    with pytest.raises(ValueError, match=r"^prompt 1: expected at least two tokens, got 1$"):
        tiny_llm.perplexity([[5, 6], [5]])
    with pytest.raises(ValueError, match=r"^prompt 0: the prompt has 599 tokens"):
        tiny_llm.perplexity([[5] * 600])
