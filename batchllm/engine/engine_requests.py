"""The engine's inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from batchllm.outputs import Logprob
from batchllm.request_table import End
from batchllm.sampling_params import SamplingParams


class EngineRequest(NamedTuple):
    """One prompt and its n completions, each of which is a request of the engine."""

    prompt_token_ids: np.ndarray  # int32 [prompt length], at least one
    params: SamplingParams
    seeds: Sequence[int]  # [n], 64 bits each
    max_output_tokens: int

    @property
    def score_begin(self) -> int:
        """The position of the first prompt token whose log-probability is wanted; the prompt's length if none is."""
        length, start = len(self.prompt_token_ids), self.params.prompt_logprobs_start
        return length if self.params.prompt_logprobs is None else min(start, length)


class Finished(NamedTuple):
    """A request that a step finished."""

    request_id: int
    token_ids: list[int]
    end: End | None  # None: by length
    cumulative_logprob: float
    num_cached_tokens: int
    logprobs: list[dict[int, Logprob]] | None  # if its parameters ask for them, like the next
    prompt_logprobs: list[dict[int, Logprob] | None] | None  # of the prompt's tokens from score_begin on


@dataclass(frozen=True)
class StepOutput:
    request_ids: np.ndarray  # int32 [R]: those that got a token
    token_ids: np.ndarray  # int32 [R]
    finished: list[Finished]


def score_begins(requests: Sequence[EngineRequest], counts: np.ndarray) -> np.ndarray | None:
    """int32 [sum of counts]: the first completion of a prompt asks for its scores."""
    lengths = np.array([len(request.prompt_token_ids) for request in requests], np.int32)
    of_first = np.array([request.score_begin for request in requests], np.int32)
    if (of_first == lengths).all():
        return None
    begin = np.repeat(lengths, counts)
    begin[np.cumsum([0, *counts])[:-1]] = of_first
    return begin
