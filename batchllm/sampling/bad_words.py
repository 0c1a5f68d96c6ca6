"""`bad_words`: no token is drawn that would complete one of them in the output.

A word is banned as the tokenizer writes it at the start of a text. It is also banned as written after a space, if that
is a sequence of the same number of tokens with a different first one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tokenizers
import torch
from torch import Tensor

from batchllm.request_table import End, LiveRequest, RequestTable
from batchllm.sampling.prepared import Prepared, places
from batchllm.sampling.rules import NO_TOKEN_LEFT, LogitsRule, Rows
from batchllm.sampling_params import SamplingParams


@dataclass(frozen=True)
class BannedSequences:
    """Token sequences, by their ends."""

    always: list[int]  # tokens that are one by themselves
    after: dict[
        int, list[tuple[list[int], int]]
    ]  # by the last token but one: what stands before the last, and the last
    num_before_last: int  # of the longest

    def completed_after(self, output: list[int]) -> np.ndarray:
        """int64: the tokens that complete one after these."""
        endings = self.after.get(output[-1], []) if output else []
        return np.array(
            [*self.always, *(last for before, last in endings if output[-len(before) :] == before)], np.int64
        )


class BadWords(LogitsRule):
    def __init__(self, tokenizer: Callable[[], tokenizers.Tokenizer], vocab_size: int) -> None:
        """`tokenizer` is called as soon as a request has bad words; it raises ValueError if there is none."""
        self._load, self._vocab_size = tokenizer, vocab_size

    def bind(self, requests: RequestTable) -> None:
        self._has_bad_words = requests.column(bool)
        self._banned = Prepared(lambda request: request.params.bad_words, self._sequences)
        # By request: the last tokens of its output, as many as a sequence may have before its last.
        self.ends_of_output: dict[int, list[int]] = {}

    def concerns_params(self, params: SamplingParams) -> bool:
        return bool(params.bad_words)

    def add(self, request: LiveRequest) -> None:
        self._load()
        self._has_bad_words.values[request.slot] = True

    def concerns(self, rows: Rows) -> np.ndarray | None:
        return self._has_bad_words.at(rows.slots)

    def before_draw(self, logits: Tensor, rows: Rows) -> None:
        banned = [self._completed(rows[row]) for row in range(len(rows))]
        logits[places(banned, logits.device)] = -torch.inf

    def after_draw(self, rows: Rows, tokens: np.ndarray) -> list[tuple[int, End]]:
        ends = []
        for row in np.flatnonzero(self._has_bad_words.at(rows.slots)).tolist():
            request, token = rows[row], int(tokens[row])
            if token in self._completed(request):
                ends.append((row, NO_TOKEN_LEFT))
            if num_kept := self._banned(request).num_before_last:
                output = [*self.ends_of_output.get(request.id, ()), token]
                self.ends_of_output[request.id] = output[-num_kept:]
        return ends

    def forget(self, request: LiveRequest) -> None:
        self.ends_of_output.pop(request.id, None)
        self._banned.forget(request)

    def _completed(self, request: LiveRequest) -> np.ndarray:
        return self._banned(request).completed_after(self.ends_of_output.get(request.id, []))

    def _sequences(self, words: list[str]) -> BannedSequences:
        always: list[int] = []
        after: dict[int, list[tuple[list[int], int]]] = {}
        num_before_last = 0
        for token_ids in (ids for word in words for ids in self._spellings(word)):
            if not token_ids or max(token_ids) >= self._vocab_size:
                continue  # never drawn
            *before, last = token_ids
            if before:
                after.setdefault(before[-1], []).append((before, last))
            else:
                always.append(last)
            num_before_last = max(num_before_last, len(before))
        return BannedSequences(always, after, num_before_last)

    def _spellings(self, word: str) -> list[list[int]]:
        bare, spaced = (self._load().encode(text, add_special_tokens=False).ids for text in (word, " " + word.lstrip()))
        is_another_word = len(spaced) == len(bare) and spaced[:1] != bare[:1]
        return [bare, spaced] if is_another_word else [bare]
