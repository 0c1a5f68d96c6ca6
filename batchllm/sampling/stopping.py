"""The text of a request, as it grows and in the end, and the stop strings in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import tokenizers

from batchllm.sampling_params import SamplingParams
from batchllm.text import as_value_error

INCOMPLETE = "\ufffd"  # what bytes decode to that are no character, or not yet
CONTEXT_TOKENS = 8  # of a prompt, at first; an unfinished character has at most 3

Decode = Callable[[list[int]], str]


@dataclass
class StopMatch:
    stop: str
    text: str  # up to the stop string; with it where include_stop_str_in_output


def text_after(decode: Decode, prompt: Sequence[int], output: Sequence[int]) -> str:
    """What the output adds to the prompt's text, both decoded at once: a tokenizer may take the first space off."""
    context = context_of(decode, prompt)
    return _without(decode(context), decode([*context, *output]))


def context_of(decode: Decode, prompt: Sequence[int]) -> list[int]:
    """The last tokens of a prompt, some of which are text, if any of the prompt is. An unfinished character's bytes are
    the prompt's, and join with nothing."""
    num_tokens = CONTEXT_TOKENS
    while True:
        context = [int(token) for token in prompt[-num_tokens:]]
        for _ in context[-CONTEXT_TOKENS:]:
            if decode(context).endswith(INCOMPLETE):
                context.pop()
        if num_tokens >= len(prompt) or decode(context):
            return context
        num_tokens *= 2


def _without(context: str, text: str) -> str:
    """The text after the context; where bytes join with its last ones, from the first character that changed on."""
    common = takewhile(lambda pair: pair[0] == pair[1], zip(context, text, strict=False))
    return text[sum(1 for _ in common) :]


class GrowingText:
    """A request's text, token by token: always what `text_after` gives for the tokens so far, but for an unfinished
    character at the end."""

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self.text = ""
        self._decode = decode
        self._ids = context_of(decode, prompt)
        self._context = decode(self._ids)
        # What comes next is decoded after a window of what is in the text, whose bytes may still join with it.
        self._begin, self._end, self._window = 0, len(self._ids), self._context

    def append(self, token: int) -> int | None:
        """Where the text changed; None where it did not, because the token ends amid a character."""
        self._ids.append(token)
        decoded = self._decode(self._ids[self._begin :])
        if decoded.endswith(INCOMPLETE):
            return None
        changed_at = len(self.text)
        if decoded.startswith(self._window):
            self.text += decoded[len(self._window) :]
            begin = self._end
        else:  # bytes that were characters are none together with those that followed: this happens in no good text
            self.text = _without(self._context, self._decode(self._ids))
            changed_at = begin = 0
        self._end = len(self._ids)
        window = self._decode(self._ids[begin:])
        if window:  # after tokens that are no text, a space would be taken for the first of all
            self._begin, self._window = begin, window
        else:
            self._window = decoded
        return changed_at

    def whole(self) -> str:
        """With the unfinished character, as far as it has come."""
        return _without(self._context, self._decode(self._ids))


class StopStringWatcher:
    """Detokenizes the requests that have stop strings as they grow, and looks for the first match.

    A stop string that is a special token stops at that token, be it shown or not.
    """

    def __init__(
        self,
        params: Sequence[SamplingParams],
        tokenizer: tokenizers.Tokenizer | None,
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """`tokenizer` may be None where no request has stop strings. A text begins after its prompt, if there are
        any."""
        self.params = params
        self.watched = np.array([bool(p.stop_strings) for p in params], bool)
        self.matches: dict[int, StopMatch] = {}
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._texts: dict[int, GrowingText] = {}
        self._failures: dict[int, ValueError] = {}
        added = tokenizer.get_added_tokens_decoder() if tokenizer is not None else {}
        self._special = {token_id: token.content for token_id, token in added.items() if token.special}

    def update(self, request_ids: np.ndarray, tokens: np.ndarray, num_output_tokens: np.ndarray) -> np.ndarray:
        """bool [R]: this step's token completes a stop string. `num_output_tokens` counts that token. A request whose
        tokens cannot be decoded stops, too."""
        stopped = np.zeros(len(request_ids), bool)
        for row in np.flatnonzero(self.watched[request_ids]):
            request = int(request_ids[row])
            try:
                stopped[row] = self._append(request, int(tokens[row]), int(num_output_tokens[row]))
            except ValueError as error:
                self._failures[request] = error
                stopped[row] = True
        return stopped

    def forget(self, request: int) -> StopMatch | None:
        """Drops what is kept of a finished request; its match, if a stop string ended it. Raises ValueError if its
        tokens could not be decoded."""
        self._texts.pop(request, None)
        if failure := self._failures.pop(request, None):
            raise failure
        return self.matches.pop(request, None)

    def _append(self, request: int, token: int, num_output_tokens: int) -> bool:
        params = self.params[request]
        text = self._texts.get(request)
        if text is None:
            assert self._tokenizer is not None
            prompt = self._prompts[request] if self._prompts is not None else ()
            text = self._texts[request] = GrowingText(decoder(self._tokenizer, params), prompt)
        may_stop = num_output_tokens >= params.min_tokens
        special = self._special.get(token)
        if may_stop and special is not None and special in params.stop_strings:
            return self._match(request, special, text.whole())
        changed_at = text.append(token)
        if changed_at is None or not may_stop:
            return False
        found = []
        for stop in params.stop_strings:
            # A match must end in what changed; what stood before was searched before.
            start = text.text.find(stop, max(0, changed_at - len(stop) + 1))
            if start >= 0:
                found.append((start, stop))
        if not found:
            return False
        start, stop = min(found)
        return self._match(request, stop, text.text[:start])

    def _match(self, request: int, stop: str, before: str) -> bool:
        included = self.params[request].include_stop_str_in_output
        self.matches[request] = StopMatch(stop, before + stop if included else before)
        return True


def decoder(tokenizer: tokenizers.Tokenizer, params: SamplingParams) -> Decode:
    """Raises ValueError for whatever the tokenizer raises."""

    def decode(token_ids: list[int]) -> str:
        with as_value_error("the tokenizer fails on the tokens"):
            text: str = tokenizer.decode(token_ids, skip_special_tokens=params.skip_special_tokens)
        return text

    return decode
