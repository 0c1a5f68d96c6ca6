"""Stop strings: the text of requests that have some is followed as it grows.

A stop string that is a special token stops at that token, whether it is shown or not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tokenizers

from batchllm.request_table import End, LiveRequest, RequestTable
from batchllm.sampling.growing_text import GrowingText, decoder
from batchllm.sampling.rules import LogitsRule, Rows
from batchllm.sampling_params import SamplingParams


class StopStrings(LogitsRule):
    def __init__(self, tokenizer: Callable[[], tokenizers.Tokenizer]) -> None:
        """`tokenizer` is called as soon as a request has stop strings; it raises ValueError if there is none."""
        self._load = tokenizer
        self._tokenizer: tokenizers.Tokenizer | None = None
        self._special: dict[int, str] = {}  # special tokens

    def bind(self, requests: RequestTable) -> None:
        self._watched = requests.column(bool, False)
        self._texts: dict[int, GrowingText] = {}  # of watched requests with a token, by id

    def concerns_params(self, params: SamplingParams) -> bool:
        return bool(params.stop_strings)

    def add(self, request: LiveRequest) -> None:
        if self._tokenizer is None:
            self._tokenizer = self._load()
            added = self._tokenizer.get_added_tokens_decoder().items()
            self._special = {token_id: token.content for token_id, token in added if token.special}
        self._watched.values[request.slot] = True

    def after_draw(self, rows: Rows, tokens: np.ndarray) -> list[tuple[int, End]]:
        ends = []
        for row in np.flatnonzero(self._watched.at(rows.slots)).tolist():
            try:
                end = self._append(rows[row], int(tokens[row]), int(rows.num_output_tokens[row]) + 1)
            except ValueError as error:
                end = End(error=str(error))
            if end is not None:
                ends.append((row, end))
        return ends

    def forget(self, request: LiveRequest) -> None:
        self._texts.pop(request.id, None)

    def _append(self, request: LiveRequest, token: int, num_output_tokens: int) -> End | None:
        params = request.params
        text = self._texts.get(request.id)
        if text is None:
            assert self._tokenizer is not None
            text = GrowingText(decoder(self._tokenizer, params), request.prompt_token_ids.tolist())
            self._texts[request.id] = text
        may_stop = num_output_tokens >= params.min_tokens
        special = self._special.get(token)
        if may_stop and special is not None and special in params.stop_strings:
            return _match(request, special, text.whole())
        changed_at = text.append(token)
        if changed_at is None or not may_stop:
            return None
        found = []
        for stop in params.stop_strings:
            # A match must end in the changed part; the rest was searched before.
            start = text.text.find(stop, max(0, changed_at - len(stop) + 1))
            if start >= 0:
                found.append((start, stop))
        if not found:
            return None
        start, stop = min(found)
        return _match(request, stop, text.text[:start])


def _match(request: LiveRequest, stop: str, before: str) -> End:
    return End(stop, before + stop if request.params.include_stop_str_in_output else before)
