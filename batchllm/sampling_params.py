"""The sampling parameters of a request. Names and defaults are vLLM's."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec

MAX_INT32 = 2**31 - 1
REPETITION_PENALTIES = (1e-6, 1e6)  # within which no logit overflows float32


class StructuredOutputsParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The form that an answer's text must have: exactly one of these.

    json: a JSON schema, as an object or its text; objects have only the properties that the schema names.
    regex: a regular expression that matches the whole text.
    choice: one of these texts.
    grammar: in GBNF, with a rule `root`.
    json_object: any JSON object.

    The language of schemas, expressions and grammars is xgrammar's. Raises ValueError, naming the field.
    """

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    def __post_init__(self) -> None:
        given = [name for name in self.__struct_fields__ if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            names = ", ".join(self.__struct_fields__)
            raise ValueError(f"expected one of {names}, got {' and '.join(given) or 'none'}")
        where = given[0]
        if self.json is not None:
            _expect(isinstance(self.json, (str, dict)), where, "a JSON schema", self.json)
        for name in ("regex", "grammar"):
            _expect(isinstance(getattr(self, name), (str, type(None))), where, "text", getattr(self, name))
        if self.choice is not None:
            texts = _items(where, self.choice)
            is_list_of_texts = texts != [] and all(isinstance(text, str) and text for text in texts)
            _expect(is_list_of_texts, where, "a non-empty list of non-empty texts", self.choice)

    @property
    def source(self) -> tuple[str, str]:
        """The kind of grammar and its text; equal pairs are the same grammar."""
        if self.json is not None:
            return "json", self.json if isinstance(self.json, str) else json.dumps(self.json)
        if self.choice is not None:
            return "choice", json.dumps(self.choice)
        if self.regex is not None:
            return "regex", self.regex
        if self.grammar is not None:
            return "grammar", self.grammar
        return "json_object", ""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling parameters of one request.

    Choice of token: `temperature=0` is greedy. `top_k=0` (or -1), `top_p=1` and `min_p=0` switch their filters off; the
    filters apply after the temperature. `presence_penalty` is subtracted from the logit of each token already in the
    output, and `frequency_penalty` once per occurrence. `repetition_penalty` divides the logits of tokens in prompt or
    output if they are positive, and multiplies them otherwise. `logit_bias` is added to the logits of the tokens that
    it names. If `allowed_token_ids` are given, only they are drawn. No token is drawn that would complete one of
    `bad_words` in the output, with or without a space before it, and neither the end-of-sequence token nor
    `stop_token_ids` before `min_tokens` tokens. A request left without any token ends with the finish_reason "error".

    End: `max_tokens=None` means up to the model's context length, which also ends requests for more, with the
    stop_reason "max_model_len". No stop string ends the text before `min_tokens` tokens.

    A request with a `seed` gives the same tokens in any batch (up to the rounding of its logits). Every prompt, and
    sample i of its `n`, draws its own stream from that seed.

    The text has the form that `structured_outputs` describes, unless `max_tokens` or a stop cuts it short.

    Log-probabilities: for each output token, `logprobs` asks for its log-probability and those of this many of the
    likeliest tokens (-1: all), and `logprob_token_ids` for those of the tokens that it names. `prompt_logprobs` is the
    same as `logprobs` for the prompt's tokens from position `prompt_logprobs_start` on; nothing predicts the one at 0.
    All are under the model, before anything above changes the logits.

    Raises ValueError, naming the field, what was expected and what was found.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    prompt_logprobs_start: int = 1
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        _check_int("n", self.n, at_least=1)
        _check_number("temperature", self.temperature)
        _expect(self.temperature >= 0, "temperature", "a number >= 0", self.temperature)
        _check_number("top_p", self.top_p)
        _expect(0 < self.top_p <= 1, "top_p", "a number in (0, 1]", self.top_p)
        _check_int("top_k", self.top_k, at_least=-1)
        _check_number_between("min_p", self.min_p, 0, 1)
        _check_number_between("presence_penalty", self.presence_penalty, -2, 2)
        _check_number_between("frequency_penalty", self.frequency_penalty, -2, 2)
        _check_number_between("repetition_penalty", self.repetition_penalty, *REPETITION_PENALTIES)
        is_mapping = self.logit_bias is None or isinstance(self.logit_bias, dict)
        _expect(is_mapping, "logit_bias", "a dict of token ids and numbers", self.logit_bias)
        for token_id, bias in (self.logit_bias or {}).items():
            _check_int("logit_bias", token_id, at_least=0)
            _check_number_between(f"logit_bias[{token_id}]", bias, -100, 100)
        if self.allowed_token_ids is not None:
            allowed = _items("allowed_token_ids", self.allowed_token_ids)
            _expect(len(allowed) > 0, "allowed_token_ids", "at least one token id", self.allowed_token_ids)
        for name in ("stop_token_ids", "allowed_token_ids", "logprob_token_ids"):
            for token_id in _items(name, getattr(self, name)):
                _check_int(name, token_id, at_least=0)
        if self.seed is not None:
            _check_int("seed", self.seed)
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, at_least=1)
        _check_int("min_tokens", self.min_tokens, at_least=0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens: expected at most max_tokens ({self.max_tokens}), got {self.min_tokens}")
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), at_least=-1)
        _check_int("prompt_logprobs_start", self.prompt_logprobs_start, at_least=1)
        if self.structured_outputs is not None:
            is_one = isinstance(self.structured_outputs, StructuredOutputsParams)
            _expect(is_one, "structured_outputs", "StructuredOutputsParams", self.structured_outputs)
            if self.min_tokens:
                raise ValueError(f"min_tokens: expected 0 beside structured_outputs, got {self.min_tokens}")
        for text in [self.stop] if isinstance(self.stop, str) else _items("stop", self.stop):
            _expect(isinstance(text, str) and text != "", "stop", "non-empty strings", text)
        for word in _items("bad_words", self.bad_words):
            _expect(isinstance(word, str) and word != "", "bad_words", "non-empty strings", word)
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            _expect(isinstance(getattr(self, name), bool), name, "True or False", getattr(self, name))

    @property
    def ends_only_at_max_tokens(self) -> bool:
        return self.ignore_eos and not (self.stop_token_ids or self.stop_strings or self.structured_outputs)

    @property
    def stop_strings(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5


def _expect(condition: bool, field: str, expected: str, got: Any) -> None:
    if not condition:
        raise ValueError(f"{field}: expected {expected}, got {got!r}")


def _check_int(field: str, value: Any, at_least: int | None = None) -> None:
    """An integer of any size, or one from at_least to MAX_INT32."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if at_least is None:
        _expect(is_int, field, "an integer", value)
    else:
        bounds = f">= {at_least}" if not is_int or value < at_least else f"<= {MAX_INT32}"
        _expect(is_int and at_least <= value <= MAX_INT32, field, f"an integer {bounds}", value)


def _items(field: str, value: Any) -> list[Any]:
    _expect(value is None or isinstance(value, (list, tuple)), field, "a list", value)
    return list(value or ())


def _check_number(field: str, value: Any) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    _expect(is_number, field, "a finite number", value)


def _check_number_between(field: str, value: Any, least: float, most: float) -> None:
    _check_number(field, value)
    _expect(least <= value <= most, field, f"a number from {least:g} to {most:g}", value)
