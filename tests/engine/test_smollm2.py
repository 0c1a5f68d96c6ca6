"""SmolLM2-135M-Instruct against transformers: logits, greedy tokens, bf16 error, under every way to plan the job."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from batchllm import LLM, SamplingParams
from tests.engine.teacher import (
    assert_greedy_agrees,
    assert_logits_agree,
    our_logits,
    plan_for_short_outputs,
    transformers_logits,
)

TOLERANCE = 1e-4
NUM_OUTPUT = 5

SYSTEM = "You are a careful assistant. Answer in one short sentence and use only the text below."
TEXTS = [
    "The lighthouse stood on a rock half a mile from the shore. Its keeper rowed out twice a week with oil and bread.",
    "A compiler reads a program in one language and writes it in another. Most compilers work in several passes.",
    "In the spring of 1871 the river rose by nine feet, and the mill at the bend was carried away in a single night.",
    "Bees find their way home by the sun. When clouds hide it they read the pattern of light in the open sky instead.",
]
QUESTIONS = ["What is this about?", "Who is named?", "Where does it take place, and when?", "Why?", "Name one number."]


@pytest.fixture(scope="module")
def prompts(smollm2) -> list[list[int]]:
    """64 prompts: two levels of sharing, loners, prefixes of each other, duplicates, one token, empty own parts."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)

    def ids(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    documents = [ids(f"{SYSTEM}\n\n{text}") for text in TEXTS]
    rows = [document + ids(f"\n\nQ: {question} A:") for document in documents for question in QUESTIONS]
    rows += [list(document) for document in documents]  # a prompt that is another's prefix
    rows += [document[:20] for document in documents]  # ends inside the system prompt, four times the same
    rows += [rows[0], rows[0], rows[7]]  # duplicates: nothing of their own but the last token
    rows += [rows[3][:-1], rows[3] + ids(" Because")]
    rows += [[1], [1], [42]]
    generator = random.Random(0)
    while len(rows) < 64:
        rows.append([generator.randrange(1000, 48000) for _ in range(generator.choice([1, 2, 15, 16, 17, 33, 70]))])
    generator.shuffle(rows)
    return rows


@pytest.fixture(scope="module")
def continuations(prompts) -> list[list[int]]:
    generator = random.Random(1)
    return [[generator.randrange(1000, 48000) for _ in range(NUM_OUTPUT)] for _ in prompts]


@pytest.fixture(scope="module")
def reference(smollm2):
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def reference_logits(reference, prompts, continuations):
    return transformers_logits(reference, prompts, continuations)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"levels": 1},
        {"levels": 0},
        {"page_size": 1, "max_batch_tokens": 50},
        {"page_size": 64, "max_batch_tokens": 4096, "num_threads": 1},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()) or "default",
)
def test_logits_equal_transformers(smollm2, prompts, continuations, reference_logits, options):
    threads = torch.get_num_threads()
    try:
        llm = LLM(smollm2, dtype="float32", **options)
        assert_logits_agree(our_logits(llm, prompts, continuations), reference_logits, TOLERANCE)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("levels", "page_size"), [(None, 1), (1, 2), (0, 1)])
def test_preempted_requests_give_the_same_logits(
    smollm2, prompts, continuations, reference_logits, levels, page_size, monkeypatch
):
    planners = plan_for_short_outputs(monkeypatch)
    longest = max(len(prompt) for prompt in prompts) + NUM_OUTPUT
    llm = LLM(smollm2, dtype="float32", levels=levels, page_size=page_size, kv_cache_tokens=2 * longest)
    ours = our_logits(llm, prompts, continuations)
    assert planners[-1].stats["preemptions"] > 3
    assert_logits_agree(ours, reference_logits, TOLERANCE)


def test_order_of_the_input_changes_nothing(smollm2, prompts, continuations, reference_logits):
    order = random.Random(2).sample(range(len(prompts)), len(prompts))
    llm = LLM(smollm2, dtype="float32")
    shuffled = our_logits(llm, [prompts[i] for i in order], [continuations[i] for i in order])
    assert_logits_agree(shuffled, [reference_logits[i] for i in order], TOLERANCE)


@pytest.mark.parametrize("levels", [None, 1, 0])
def test_greedy_tokens_equal_transformers(smollm2, prompts, reference, levels):
    llm = LLM(smollm2, dtype="float32", levels=levels)
    params = SamplingParams(temperature=0, max_tokens=NUM_OUTPUT, ignore_eos=True)
    outputs = [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]
    theirs = transformers_logits(reference, prompts, outputs)
    decided = assert_greedy_agrees(outputs, theirs, TOLERANCE)
    assert decided > 0.9 * NUM_OUTPUT * len(prompts), "nearly every position has a clear winner"


def test_sharing_computes_each_distinct_token_once(smollm2, prompts):
    params = SamplingParams(temperature=0, max_tokens=1)
    distinct = {tuple(prompt[:end]) for prompt in prompts for end in range(1, len(prompt))}
    llm = LLM(smollm2, dtype="float32")
    llm.generate(prompts, params, use_tqdm=False)
    shared = llm.stats["computed_prompt_tokens"]
    # Each prompt computes its last token itself; runs too short to pay for a segment are computed again.
    least = len(distinct) + len(prompts)
    assert least <= shared <= 1.1 * least
    unshared = LLM(smollm2, dtype="float32", levels=0)
    unshared.generate(prompts, params, use_tqdm=False)
    assert unshared.stats["computed_prompt_tokens"] == sum(map(len, prompts))


ON_GPU = [{}, {"levels": 1}, {"levels": 0}, {"page_size": 1, "max_batch_tokens": 50}]


@pytest.mark.parametrize(
    "options",
    [{}, *(pytest.param({"device": "cuda", **options}, marks=pytest.mark.gpu) for options in ON_GPU)],
    ids=str,
)
def test_bf16_error_is_at_most_twice_that_of_transformers(smollm2, prompts, continuations, reference_logits, options):
    llm = LLM(smollm2, dtype="bfloat16", **options)
    ours = our_logits(llm, prompts, continuations)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16, attn_implementation="eager").eval()
    theirs = transformers_logits(model, prompts, continuations)

    def rms(logits: list[torch.Tensor]) -> float:
        return float((torch.cat(logits) - torch.cat(reference_logits)).square().mean().sqrt())

    assert rms(ours) <= 2 * rms(theirs)
