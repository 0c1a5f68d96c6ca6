"""The text of a request, while it grows and at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

import tokenizers

from batchllm.sampling_params import SamplingParams
from batchllm.text import as_value_error

INCOMPLETE = "\ufffd"  # decoded from bytes that form no character, or not yet
CONTEXT_TOKENS = 4  # of a prompt, at first; an unfinished character has at most 3

Decode = Callable[[list[int]], str]


def text_after(decode: Decode, prompt: Sequence[int], output: Sequence[int]) -> str:
    """The text that the output adds to the prompt's, decoded together, because a tokenizer may drop the first space."""
    context, text = context_of(decode, prompt)
    return _without(text, decode([*context, *output]))


def context_of(decode: Decode, prompt: Sequence[int]) -> tuple[list[int], str]:
    """The last tokens of a prompt, including some text if the prompt has any, and that text. The bytes of an unfinished
    character belong to the prompt and join with nothing."""
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
    """The text after the context; if bytes join with its last ones, from the first changed character on."""
    if text.startswith(context):
        return text[len(context) :]
    common = takewhile(lambda pair: pair[0] == pair[1], zip(context, text, strict=False))
    return text[sum(1 for _ in common) :]


class GrowingText:
    """A request's text, token by token: always what `text_after` gives for the tokens so far, except an unfinished
    character at the end."""

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self.text = ""
        self._decode = decode
        self._ids, self._context = context_of(decode, prompt)
        # New tokens are decoded after a window of the last ones, whose bytes may still join with them.
        self._begin, self._end, self._window = 0, len(self._ids), self._context

    def append(self, token: int) -> int | None:
        """Where the text changed; None if it did not, because the token ends inside a character."""
        self._ids.append(token)
        decoded = self._decode(self._ids[self._begin :])
        if decoded.endswith(INCOMPLETE):
            return None
        changed_at = len(self.text)
        if decoded.startswith(self._window):
            self.text += decoded[len(self._window) :]
            begin = self._end
        else:  # bytes that were characters are none with those that follow; this happens in no valid text
            self.text = _without(self._context, self._decode(self._ids))
            changed_at = begin = 0
        self._end = len(self._ids)
        window = self._decode(self._ids[begin:])
        if window:  # after tokens without text, a space would count as the first of the text
            self._begin, self._window = begin, window
        else:
            self._window = decoded
        return changed_at

    def whole(self) -> str:
        """The text including the unfinished character."""
        return _without(self._context, self._decode(self._ids))


def decoder(tokenizer: tokenizers.Tokenizer, params: SamplingParams) -> Decode:
    """Raises ValueError for whatever the tokenizer raises."""

    failing = as_value_error("the tokenizer fails on the tokens")
    skip_special_tokens = params.skip_special_tokens

    def decode(token_ids: list[int]) -> str:
        try:
            text: str = tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        except BaseException:
            with failing:  # entered only after a failure: this is called for every answer
                raise
        return text

    return decode
