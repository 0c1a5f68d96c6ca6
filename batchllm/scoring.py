"""How likely given continuations are: requests that draw nothing of use, whose tokens are known before.

    prompt ──┬── token a            one request: the prompt, whose last row is asked for a and b
             ├── token b
             └── tokens c d         another: the prompt and c; c is scored by the row before it, d by the last row

A row of what several requests share is computed once, and asked for the next token of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from batchllm.engine.engine import EngineRequest, Finished
from batchllm.outputs import ContinuationScore, Logprob
from batchllm.sampling_params import SamplingParams


@dataclass(frozen=True)
class Continuation:
    """What is scored of a text: its tokens from `begin` on, given those before."""

    token_ids: list[int]  # of all of it, at least two
    begin: int  # at least 1, and less than their number


def continuation_of(prompt_token_ids: Sequence[int], token_ids: list[int]) -> Continuation:
    """Of a text that begins with the prompt's: from the first token on that is not the prompt's, too. A tokenizer may
    join the prompt's end with what follows.

    Raises ValueError where no token follows, or none comes before.
    """
    pairs = zip(prompt_token_ids, token_ids, strict=False)
    begin = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if begin == len(token_ids):
        raise ValueError("expected at least one token after the prompt")
    if begin == 0:
        raise ValueError("expected a prompt of at least one token before it")
    return Continuation(token_ids, begin)


class ScoringJob:
    """The requests that score continuations: one for all that differ in their last token only."""

    def __init__(self, continuations: Sequence[Continuation]) -> None:
        self._continuations = continuations
        self._members: list[list[int]] = []  # places in continuations, by request
        groups: dict[tuple[bytes, int], int] = {}
        for place, continuation in enumerate(continuations):
            key = (np.array(continuation.token_ids[:-1], np.int32).tobytes(), continuation.begin)
            number = groups.setdefault(key, len(self._members))
            if number == len(self._members):
                self._members.append([])
            self._members[number].append(place)

        self.requests = [self._request(members) for members in self._members]

    def _request(self, members: list[int]) -> EngineRequest:
        first = self._continuations[members[0]]
        params = scoring_params(first.begin, [self._continuations[place].token_ids[-1] for place in members])
        return EngineRequest(np.array(first.token_ids[:-1], np.int32), params, [0], 1)

    def scores(self, number: int, finished: Finished) -> list[tuple[int, ContinuationScore]]:
        """Of every continuation that the request scores: its place among them, and what came."""
        assert finished.logprobs is not None
        return [(place, self._score(self._continuations[place], finished)) for place in self._members[number]]

    def _score(self, continuation: Continuation, finished: Finished) -> ContinuationScore:
        token_ids = continuation.token_ids[continuation.begin :]
        entries = [*(finished.prompt_logprobs or ()), (finished.logprobs or [])[0]]
        logprobs: list[Logprob] = [entry[token] for token, entry in zip(token_ids, entries, strict=True) if entry]
        return ContinuationScore(token_ids, [of.logprob for of in logprobs], all(of.rank == 1 for of in logprobs))


def scoring_params(begin: int, last_token_ids: list[int]) -> SamplingParams:
    """Of a request whose prompt is scored from `begin` on, and whose last row is asked for these tokens."""
    return SamplingParams(
        temperature=0,
        max_tokens=1,
        ignore_eos=True,
        logprob_token_ids=last_token_ids,
        prompt_logprobs=0,
        prompt_logprobs_start=begin,
    )


def probabilities(logprobs: Sequence[float]) -> list[float]:
    """Of one of several outcomes with these log-probabilities, given that it is one of them."""
    most = max(logprobs)
    weights = [math.exp(logprob - most) for logprob in logprobs]
    return [weight / sum(weights) for weight in weights]
