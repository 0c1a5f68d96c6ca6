"""Scores given continuations: requests whose tokens are known beforehand, so that their draws are ignored.

    prompt ──┬── token a            one request: the prompt, whose last row scores a and b
             ├── token b
             └── tokens c d         another: the prompt and c; c is scored by the row before it, d by the last row

A row that several requests share is computed once and scores the next token of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from batchllm.continuations import Continuation, scoring_params
from batchllm.engine.engine_requests import EngineRequest, Finished
from batchllm.outputs import ContinuationScore, Logprob


class ScoringJob:
    """The requests that score continuations: one for all continuations that differ only in their last token."""

    def __init__(self, continuations: Sequence[Continuation]) -> None:
        self._continuations = continuations
        self._members: list[list[int]] = []  # indices of continuations, by request
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
        """For every continuation that the request scores: its index and its score."""
        assert finished.logprobs is not None
        return [(place, self._score(self._continuations[place], finished)) for place in self._members[number]]

    def _score(self, continuation: Continuation, finished: Finished) -> ContinuationScore:
        token_ids = continuation.token_ids[continuation.begin :]
        entries = [*(finished.prompt_logprobs or ()), (finished.logprobs or [])[0]]
        logprobs: list[Logprob] = [entry[token] for token, entry in zip(token_ids, entries, strict=True) if entry]
        return ContinuationScore(token_ids, [of.logprob for of in logprobs], all(of.rank == 1 for of in logprobs))
