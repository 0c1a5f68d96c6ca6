"""Continuations given with a prompt: their forms, and the scores they ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from batchllm.sampling_params import SamplingParams


@dataclass(frozen=True)
class Continuation:
    """The scored part of a text: its tokens from `begin` on, given those before."""

    token_ids: list[int]  # of the whole text, at least two
    begin: int  # at least 1, and less than their number


def continuation_of(prompt_token_ids: Sequence[int], token_ids: list[int]) -> Continuation:
    """The part of a text from the first token that differs from the prompt's. (A tokenizer may join the end of the
    prompt with what follows.)

    Raises ValueError if no token follows, or none comes before.
    """
    pairs = zip(prompt_token_ids, token_ids, strict=False)
    begin = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if begin == len(token_ids):
        raise ValueError("expected at least one token after the prompt")
    if begin == 0:
        raise ValueError("expected a prompt of at least one token before it")
    return Continuation(token_ids, begin)


def text_after_first_token(token_ids: list[int]) -> Continuation:
    """A text scored by itself, except its first token, which nothing predicts. Raises ValueError for a shorter text."""
    if len(token_ids) < 2:
        raise ValueError(f"expected at least two tokens, got {len(token_ids)}")
    return Continuation(token_ids, 1)


def continuations_of(continuations: Sequence[Any], num_prompts: int) -> list[list[Any]]:
    """The continuations of each prompt: the same for all (text or token ids), or a list for each. Raises ValueError for
    a wrong number of lists, or if there are none."""
    items = list(continuations) if isinstance(continuations, (list, tuple)) else []
    if not items:
        raise ValueError(f"continuations: expected a non-empty list, got {continuations!r:.80}")

    def is_one(item: Any) -> bool:
        if isinstance(item, str):
            return True
        is_list = isinstance(item, (list, tuple, np.ndarray)) and len(item) > 0
        return is_list and all(isinstance(token, (int, np.integer)) for token in item)

    if all(map(is_one, items)):
        return [items] * num_prompts
    if len(items) != num_prompts:
        raise ValueError(f"continuations: expected a list for each of {num_prompts} prompts, got {len(items)} lists")
    for index, mine in enumerate(items):
        if not isinstance(mine, (list, tuple)) or not mine or not all(map(is_one, mine)):
            expected = "expected a non-empty list of texts or token ids"
            raise ValueError(f"continuations[{index}]: {expected}, got {mine!r:.80}")
    return [list(mine) for mine in items]


def scoring_params(begin: int, last_token_ids: list[int]) -> SamplingParams:
    """The scores of a request whose prompt is scored from `begin` on, and whose last row scores these tokens."""
    return SamplingParams(
        temperature=0,
        max_tokens=1,
        ignore_eos=True,
        logprob_token_ids=last_token_ids,
        prompt_logprobs=0,
        prompt_logprobs_start=begin,
    )


def is_scoring(params: SamplingParams) -> bool:
    """Whether they ask what `scoring_params` do: then the one token that is drawn is of no use."""
    is_asked = params.logprob_token_ids is not None and params.prompt_logprobs is not None
    return params.max_tokens == 1 and params.ignore_eos and params.greedy and is_asked


def perplexity(mean_logprob: float) -> float:
    """exp of the mean negative log-probability of a text's tokens; infinity if a float cannot hold it."""
    try:
        return math.exp(-mean_logprob)
    except OverflowError:
        return math.inf


def probabilities(logprobs: Sequence[float]) -> list[float]:
    """Probabilities of the outcomes with these log-probabilities, given that one of them occurs."""
    most = max(logprobs)
    weights = [math.exp(logprob - most) for logprob in logprobs]
    return [weight / sum(weights) for weight in weights]
