"""Tokens that end a request: the model's ends of sequence and `stop_token_ids`; and `min_tokens`, before which they
cannot be drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from batchllm.request_table import End, LiveRequest, RequestTable
from batchllm.sampling.prepared import places
from batchllm.sampling.rules import LogitsRule, Rows
from batchllm.sampling_params import SamplingParams

NO_SET = -1
NO_TOKENS = np.empty(0, np.int64)


@dataclass
class StopSet:
    """The tokens that end some requests, stored once while one of those is live."""

    ids: tuple[int, ...]  # ascending
    token_ids: np.ndarray  # the same, int64
    num_requests: int = 0


class StopTokens(LogitsRule):
    needs_tokens_before_draw = False  # it changes no draw

    def __init__(self, eos_token_ids: tuple[int, ...]) -> None:
        self._eos = frozenset(eos_token_ids)

    def bind(self, requests: RequestTable) -> None:
        self._set_of = requests.column(np.int64, NO_SET)  # its number; numbers are never reused
        self._sets: dict[int, StopSet] = {}
        self._number: dict[tuple[int, ...], int] = {}
        self._next_number = 0
        self._num_sets: Counter[int] = Counter()  # by token: those that it is in
        self._any_ids = NO_TOKENS  # the tokens of all sets

    def concerns_params(self, params: SamplingParams) -> bool:
        return bool(params.stop_token_ids) or (bool(self._eos) and not params.ignore_eos)

    def add(self, request: LiveRequest) -> None:
        params = request.params
        ids = tuple(sorted({*(() if params.ignore_eos else self._eos), *(params.stop_token_ids or ())}))
        if ids not in self._number:
            self._sets[self._next_number] = StopSet(ids, np.array(ids, np.int64))
            self._number[ids] = self._next_number
            self._next_number += 1
            self._count(ids, 1)
        number = self._number[ids]
        self._sets[number].num_requests += 1
        self._set_of.values[request.slot] = number

    def forget(self, request: LiveRequest) -> None:
        number = int(self._set_of.values[request.slot])
        if number == NO_SET:  # a rule before this one refused it
            return
        stop_set = self._sets[number]
        stop_set.num_requests -= 1
        if stop_set.num_requests == 0:
            del self._sets[number], self._number[stop_set.ids]
            self._count(stop_set.ids, -1)

    def _count(self, ids: tuple[int, ...], change: int) -> None:
        """A set with these tokens came or is gone."""
        num_tokens = len(self._num_sets)
        for token in ids:
            self._num_sets[token] += change
            if not self._num_sets[token]:
                del self._num_sets[token]
        if len(self._num_sets) != num_tokens:
            self._any_ids = np.array(list(self._num_sets), np.int64)

    def token_ids(self, request: LiveRequest) -> np.ndarray:
        """int64: those that end this request."""
        number = int(self._set_of.values[request.slot])
        return NO_TOKENS if number == NO_SET else self._sets[number].token_ids

    def after_draw(self, rows: Rows, tokens: np.ndarray) -> list[tuple[int, End]]:
        ids = self._any_ids
        (drawn,) = (tokens == ids[0] if len(ids) == 1 else np.isin(tokens, ids)).nonzero()
        ends: list[tuple[int, End]] = []
        for row, token in zip(drawn.tolist(), tokens[drawn].tolist(), strict=True):
            request = rows[row]
            if token in self.token_ids(request):
                ends.append((row, self._end(request, token)))
        return ends

    def _end(self, request: LiveRequest, token: int) -> End:
        is_eos = token in self._eos and not request.params.ignore_eos
        return End(None if is_eos else token, hides_last_token=not request.params.include_stop_str_in_output)


class MinTokens(LogitsRule):
    """No stop token is drawn before `min_tokens` tokens."""

    needs_tokens_before_draw = False  # their number is known

    def __init__(self, stop_tokens: StopTokens) -> None:
        self._stop_tokens = stop_tokens

    def bind(self, requests: RequestTable) -> None:
        self._min_tokens = requests.column(np.int32)

    def concerns_params(self, params: SamplingParams) -> bool:
        return params.min_tokens > 0

    def add(self, request: LiveRequest) -> None:
        self._min_tokens.values[request.slot] = request.params.min_tokens

    def concerns(self, rows: Rows) -> np.ndarray | None:
        return rows.num_output_tokens < self._min_tokens.at(rows.slots)

    def before_draw(self, logits: Tensor, rows: Rows) -> None:
        banned = [self._stop_tokens.token_ids(rows[row]) for row in range(len(rows))]
        logits[places(banned, logits.device)] = -torch.inf
