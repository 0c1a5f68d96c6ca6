"""The rules that change logits, against transformers' processors; and that they leave nothing behind."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import generation

from batchllm import SamplingParams
from batchllm.device.ops import CpuOps
from batchllm.sampling.allowed_tokens import AllowedTokens
from batchllm.sampling.bad_words import BadWords
from batchllm.sampling.logit_bias import LogitBias
from batchllm.sampling.penalties import Penalties
from batchllm.sampling.prepared import Prepared
from batchllm.sampling.rules import LogitsRule
from batchllm.sampling.token_counts import TokenCounts
from tests.engine.rows import Requests

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB_SIZE = 60


class Letters:
    """One token per letter, and another per letter after a space."""

    def encode(self, text: str, *, add_special_tokens: bool) -> SimpleNamespace:
        assert not add_special_tokens
        ids = []
        for before, letter in zip(" " + text, text, strict=False):
            if letter != " ":
                ids.append(ord(letter) - ord("a") + (26 if before == " " and text[0] == " " else 0))
        return SimpleNamespace(ids=ids)


class Seen(LogitsRule):
    """The last rule, which records what the others made of the logits."""

    def concerns(self, rows):
        return np.ones(len(rows), bool)

    def before_draw(self, logits, rows):
        assert logits.dtype == torch.float32
        self.logits = logits.clone()


class Follower:
    """Requests that draw the tokens of their outputs one after the other, and what rules make of their logits."""

    def __init__(self, params: list[SamplingParams], prompts: list[list[int]], outputs: list[list[int]]) -> None:
        self.outputs, self.seen = outputs, Seen()
        self.rules = [AllowedTokens(), BadWords(Letters, VOCAB_SIZE), LogitBias(), Penalties()]
        self.requests = Requests(params, [*self.rules, self.seen], prompts=prompts)
        self.places = [0] * len(params)

    def logits(self, logits: torch.Tensor, running: list[int]) -> torch.Tensor:
        """As the rules leave those of the running requests; each then draws its next token."""
        places = [self.places[request] for request in running]
        self.requests.sample(logits, self.requests.rows(running, places), CpuOps())
        self.requests.ends(running, places, [self.outputs[request][self.places[request]] for request in running])
        for request in running:
            self.places[request] += 1
        return self.seen.logits


def drawn(generator: random.Random, num_tokens: int, most: int = VOCAB_SIZE) -> list[int]:
    return [generator.randrange(most) for _ in range(num_tokens)]


def processed(params: SamplingParams, prompt: list[int], output: list[int], logits: torch.Tensor) -> torch.Tensor:
    """By transformers' processors in vLLM's order, each given what it counts; presence and frequency by their
    definition."""
    whole, own = torch.tensor([prompt + output]), torch.tensor([output], dtype=torch.int64)
    scores = logits.double()[None]
    if params.allowed_token_ids:
        allowed = generation.PrefixConstrainedLogitsProcessor(lambda *_: params.allowed_token_ids, 1)
        scores = allowed(whole, scores)
    if params.bad_words:
        words = [
            Letters().encode(s + word, add_special_tokens=False).ids for word in params.bad_words for s in ("", " ")
        ]
        scores = generation.NoBadWordsLogitsProcessor(words)(own, scores)
    if params.logit_bias:
        scores = generation.SequenceBiasLogitsProcessor({(t,): float(b) for t, b in params.logit_bias.items()})(
            whole, scores
        )
    if params.repetition_penalty != 1:
        scores = generation.RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty))(whole, scores)
    for token in output:
        scores[0, token] -= params.frequency_penalty
    for token in set(output):
        scores[0, token] -= params.presence_penalty
    return scores[0]


SETTINGS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.5},
    {"presence_penalty": 1.5},
    {"presence_penalty": -0.25, "frequency_penalty": 0.05},
    {"frequency_penalty": -2},
    {"presence_penalty": 0.7, "frequency_penalty": 0.3, "repetition_penalty": 1.7},
    {"logit_bias": {3: 5, 0: -100.0, 59: 100}},
    {"allowed_token_ids": [7, 8, 9, 9, 40]},
    {"bad_words": ["a", "bc", "cab", "aaaa"]},
    {"bad_words": ["ab"], "logit_bias": {1: 2.5}, "presence_penalty": 1, "repetition_penalty": 2},
    {"allowed_token_ids": list(range(20)), "bad_words": ["b"], "logit_bias": {1: 9, 30: 9}, "frequency_penalty": 0.5},
]


@pytest.mark.parametrize("settings", [[settings] for settings in SETTINGS] + [SETTINGS], ids=str)
def test_rules_make_of_logits_what_transformers_processors_make(settings):
    generator, num_requests, num_steps = random.Random(0), 24, 40
    params = [SamplingParams(**settings[i % len(settings)]) for i in range(num_requests)]
    prompts = [drawn(generator, generator.randint(1, 30), 12) for _ in params]
    outputs = [drawn(generator, num_steps, generator.choice([3, 12, VOCAB_SIZE])) for _ in params]
    follower = Follower(params, prompts, outputs)
    torch_generator = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        running = [i for i in range(num_requests) if generator.random() < 0.7] or [0]
        logits = 3 * torch.randn(len(running), VOCAB_SIZE, generator=torch_generator)
        places = [follower.places[i] for i in running]
        ours = follower.logits(logits, running)
        for row, (i, place) in enumerate(zip(running, places, strict=True)):
            expected = processed(params[i], prompts[i], outputs[i][:place], logits[row])
            torch.testing.assert_close(ours[row].double(), expected, rtol=0, atol=2e-5)


def test_small_penalties_of_large_logits_are_not_rounded_away():
    """A bfloat16 near 100 is a multiple of 0.5."""
    logits = torch.tensor([[100.0, 100.0, 99.0]]).bfloat16()
    requests = Requests([SamplingParams(temperature=0, frequency_penalty=0.1)], [Penalties()])
    tokens = []
    for place in range(4):
        (token,), _ = requests.sample(logits, requests.rows([0], [place]), CpuOps())
        requests.ends([0], [place], [int(token)])
        tokens.append(int(token))
    assert tokens == [0, 1, 0, 1]


def test_bad_words_are_looked_for_in_the_output_alone():
    follower = Follower([SamplingParams(bad_words=["ab"])], [[0]], [[0, 5]])
    logits = torch.zeros(1, VOCAB_SIZE)
    assert follower.logits(logits, [0])[0, 1] == 0
    assert follower.logits(logits, [0])[0, 1] == -torch.inf


def test_what_rules_prepare_is_shared_by_the_completions_of_a_prompt_and_goes_with_the_last(monkeypatch):
    made = []

    def keeps(of_class):
        return lambda *given: made.append(of_class(*given)) or made[-1]

    for module in ("allowed_tokens", "bad_words", "logit_bias", "penalties"):
        monkeypatch.setattr(f"batchllm.sampling.{module}.Prepared", keeps(Prepared))
    monkeypatch.setattr("batchllm.sampling.penalties.TokenCounts", keeps(TokenCounts))
    params = SamplingParams(bad_words=["ab"], logit_bias={1: 1}, allowed_token_ids=[0, 1, 2], repetition_penalty=1.5)
    prompt = np.array([1, 2, 3], np.int32)
    rules = [AllowedTokens(), BadWords(Letters, VOCAB_SIZE), LogitBias(), Penalties()]
    requests = Requests([], rules)
    for request_id in range(40):
        requests.add(request_id, prompt, params)
    held = [one for one in made if isinstance(one, Prepared)]
    (outputs,) = (one for one in made if isinstance(one, TokenCounts))
    assert [len(part) for part in held] == [0] * 4, "what waits takes nothing"
    logits = torch.zeros(40, VOCAB_SIZE)
    requests.sample(logits, requests.rows(range(40), [0] * 40), CpuOps())
    requests.ends(range(40), [0] * 40, [0] * 40)
    assert [len(part) for part in held] == [1] * 4
    assert len(outputs) == 40
    for request_id in range(40):
        requests.forget(request_id)
    assert [len(part) for part in (*held, outputs, rules[1].ends_of_output)] == [0] * 6
