"""The text of a request, as it grows and in the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

import tokenizers

from batchllm.sampling_params import SamplingParams
from batchllm.text import as_value_error

INCOMPLETE = "\ufffd"  # what bytes decode to that are no character, or not yet
CONTEXT_TOKENS = 4  # of a prompt, at first; an unfinished character has at most 3

Decode = Callable[[list[int]], str]


def text_after(decode: Decode, prompt: Sequence[int], output: Sequence[int]) -> str:
    """What the output adds to the prompt's text, both decoded at once: a tokenizer may take the first space off."""
    context, text = context_of(decode, prompt)
    return _without(text, decode([*context, *output]))


def context_of(decode: Decode, prompt: Sequence[int]) -> tuple[list[int], str]:
    """The last tokens of a prompt, some of which are text, if any of the prompt is, and that text. An unfinished
    character's bytes are the prompt's, and join with nothing."""
    num_tokens = CONTEXT_TOKENS
    while True:
        context = list(prompt[-num_tokens:])
        text = decode(context)
        for _ in range(min(CONTEXT_TOKENS, len(context))):
            if not text.endswith(INCOMPLETE):
                break
            context.pop()
            text = decode(context)
        if num_tokens >= len(prompt) or text:
            return context, text
        num_tokens *= 2


def _without(context: str, text: str) -> str:
    """The text after the context; where bytes join with its last ones, from the first character that changed on."""
    if text.startswith(context):
        return text[len(context) :]
    common = takewhile(lambda pair: pair[0] == pair[1], zip(context, text, strict=False))
    return text[sum(1 for _ in common) :]


class GrowingText:
    """A request's text, token by token: always what `text_after` gives for the tokens so far, but for an unfinished
    character at the end."""

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self.text = ""
        self._decode = decode
        self._ids, self._context = context_of(decode, prompt)
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


def decoder(tokenizer: tokenizers.Tokenizer, params: SamplingParams) -> Decode:
    """Raises ValueError for whatever the tokenizer raises."""

    failing = as_value_error("the tokenizer fails on the tokens")
    skip_special_tokens = params.skip_special_tokens

    def decode(token_ids: list[int]) -> str:
        try:
            text: str = tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        except BaseException:
            with failing:  # entered for a failure only: this is called for every answer
                raise
        return text

    return decode
