"""Why a request stops, and the text it then has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers
from tokenizers.decoders import DecodeStream

from batchllm.sampling_params import SamplingParams


@dataclass
class StopMatch:
    stop: str
    text: str  # up to the stop string; with it where include_stop_str_in_output


class StopStringWatcher:
    """Detokenizes the requests that have stop strings as they grow, and looks for the first match."""

    def __init__(self, params: Sequence[SamplingParams], tokenizer: tokenizers.Tokenizer | None) -> None:
        """`tokenizer` may be None where no request has stop strings."""
        self.params = params
        self.watched = np.array([bool(p.stop_strings) for p in params], bool)
        self.matches: dict[int, StopMatch] = {}
        self._tokenizer = tokenizer
        self._streams: dict[int, DecodeStream] = {}
        self._texts: dict[int, str] = {}

    def update(self, request_ids: np.ndarray, tokens: np.ndarray, num_output_tokens: np.ndarray) -> np.ndarray:
        """bool [R]: this step's token completes a stop string. `num_output_tokens` counts that token."""
        stopped = np.zeros(len(request_ids), bool)
        for row in np.flatnonzero(self.watched[request_ids]):
            request = int(request_ids[row])
            stopped[row] = self._append(request, int(tokens[row]), int(num_output_tokens[row]))
        return stopped

    def forget(self, request: int) -> StopMatch | None:
        """Drops what is kept of a finished request; its match, if a stop string ended it."""
        self._streams.pop(request, None)
        self._texts.pop(request, None)
        return self.matches.pop(request, None)

    def _append(self, request: int, token: int, num_output_tokens: int) -> bool:
        params = self.params[request]
        if request not in self._streams:
            self._streams[request] = DecodeStream(skip_special_tokens=params.skip_special_tokens)
            self._texts[request] = ""
        assert self._tokenizer is not None
        piece = self._streams[request].step(self._tokenizer, token) or ""
        text = self._texts[request] + piece
        self._texts[request] = text
        if not piece or num_output_tokens < params.min_tokens:
            return False
        found = []
        for stop in params.stop_strings:
            # A match must end in the new piece; what stood before was searched before.
            start = text.find(stop, max(0, len(text) - len(piece) - len(stop) + 1))
            if start >= 0:
                found.append((start, stop))
        if not found:
            return False
        start, stop = min(found)
        end = start + len(stop) if params.include_stop_str_in_output else start
        self.matches[request] = StopMatch(stop, text[:end])
        return True
