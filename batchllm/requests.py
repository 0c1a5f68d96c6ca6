"""Normalises the forms in which callers give prompts and parameters, and checks them against a model's limits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypedDict

import numpy as np

from batchllm.continuations import is_scoring
from batchllm.sampling_params import SamplingParams


class TextPrompt(TypedDict):
    prompt: str


class TokensPrompt(TypedDict):
    prompt_token_ids: list[int]


Prompt = str | list[int] | TextPrompt | TokensPrompt


def prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Any]:
    """One prompt or many: a list of integers is one prompt."""
    if isinstance(prompts, (str, dict)):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise ValueError(f"prompts: expected a prompt or a list of them, got {type(prompts).__name__}")
    items: list[Any] = list(prompts)
    if items and all(isinstance(item, (int, np.integer)) for item in items):
        return [items]
    return items


def parse_prompt(index: int, prompt: Prompt) -> tuple[str | None, list[int] | None]:
    """(text, None) or (None, token ids). Raises ValueError that names the prompt's index."""
    value: Any = prompt
    if isinstance(prompt, dict):
        keys = [key for key in ("prompt", "prompt_token_ids") if key in prompt]
        if len(keys) != 1:
            raise ValueError(
                f"prompt {index}: expected a dict with either 'prompt' or 'prompt_token_ids', got keys {list(prompt)}"
            )
        value = prompt[keys[0]]  # type: ignore[literal-required]
        if isinstance(value, str) != (keys[0] == "prompt"):
            raise ValueError(f"prompt {index}: {keys[0]}: got {type(value).__name__}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"prompt {index}: not valid Unicode: {error}") from None
        return value, None
    if isinstance(value, np.ndarray):
        return None, value.tolist()
    if isinstance(value, (list, tuple)):
        return None, [token.item() if isinstance(token, np.generic) else token for token in value]
    raise ValueError(f"prompt {index}: expected text, token ids or a dict with one of them, got {type(value).__name__}")


def params_list(sampling_params: SamplingParams | Sequence[SamplingParams], num_prompts: int) -> list[SamplingParams]:
    """One for each prompt. Raises ValueError for a wrong number, or for another type in the list."""
    if isinstance(sampling_params, SamplingParams):
        return [sampling_params] * num_prompts
    sampling_params = list(sampling_params)
    for index, params in enumerate(sampling_params):
        if not isinstance(params, SamplingParams):
            raise ValueError(f"sampling_params[{index}]: expected SamplingParams, got {type(params).__name__}")
    if len(sampling_params) != num_prompts:
        raise ValueError(f"sampling_params: expected one for each of {num_prompts} prompts, got {len(sampling_params)}")
    return sampling_params


@dataclass(frozen=True)
class RequestLimits:
    """What a model and its KV pool can hold. Sizes are in tokens."""

    vocab_size: int
    max_model_len: int  # of a prompt and its output together
    page_size: int
    kv_cache_tokens: int
    eos_token_ids: tuple[int, ...] = ()
    most_pages: int | None = None  # that a request ever holds, however long it is; None: those of all its tokens

    def check(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Raises ValueError, with the numbers, if this request could never run."""
        if len(prompt_token_ids) == 0:
            raise ValueError("the prompt is empty")
        if not self._are_tokens(prompt_token_ids):
            self._refuse_tokens(np.asarray(prompt_token_ids))
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias", "logprob_token_ids"):
            if unknown := [token for token in getattr(params, name) or () if token >= self.vocab_size]:
                raise ValueError(f"{name}: {unknown[0]}, but the vocabulary has {self.vocab_size} tokens")
        if params.min_tokens:
            self._check_min_tokens(params)
        prompt_len = len(prompt_token_ids)
        max_output_tokens = self.max_output_tokens(prompt_len, params)
        if max_output_tokens <= 0:
            with_output = "" if is_scoring(params) else " with the output"
            raise ValueError(
                f"the prompt has {prompt_len} tokens, and the model takes {self.max_model_len}{with_output}"
            )
        output_tokens = max_output_tokens - 1  # the last one sampled is never stored
        num_pages = -(-(prompt_len + output_tokens) // self.page_size)
        if self.most_pages is not None:
            num_pages = min(num_pages, self.most_pages)
        pool_pages = self.kv_cache_tokens // self.page_size
        if num_pages > pool_pages:
            raise ValueError(
                f"the request needs {num_pages} KV pages of {self.page_size} tokens ({prompt_len} of prompt and up to "
                f"{output_tokens} of output), but kv_cache_tokens={self.kv_cache_tokens} is {pool_pages} pages"
            )

    def are_met(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> bool:
        """Whether `check` accepts each of these requests (at least one); True only if it does. Checks all tokens at
        once, and each distinct parameters object once."""
        longest: dict[int, tuple[Sequence[int], SamplingParams]] = {}  # the longest prompt with the same parameters
        for prompt, p in zip(prompts, params, strict=True):
            if id(p) not in longest or len(prompt) > len(longest[id(p)][0]):
                longest[id(p)] = prompt, p
        try:
            if not all(map(len, prompts)) or not self._are_tokens(_joined(prompts)):
                return False
            for prompt, p in longest.values():  # a shorter one needs less
                self.check(prompt, p)
        except ValueError:
            return False
        return True

    def _are_tokens(self, token_ids: Sequence[int] | np.ndarray) -> bool:
        """Whether all of them (at least one) are integers in the vocabulary."""
        if isinstance(token_ids, list) and set(map(type, token_ids)) == {int}:
            return bool(min(token_ids) >= 0 and max(token_ids) < self.vocab_size)
        ids = np.asarray(token_ids)
        return ids.ndim == 1 and ids.dtype.kind in "iu" and bool(ids.min() >= 0 and ids.max() < self.vocab_size)

    def _refuse_tokens(self, ids: np.ndarray) -> NoReturn:
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(f"prompt_token_ids: expected a list of integers, got {ids.dtype} of shape {ids.shape}")
        at = int(((ids < 0) | (ids >= self.vocab_size)).argmax())
        raise ValueError(f"prompt_token_ids[{at}] is {ids[at]}, but the vocabulary has {self.vocab_size} tokens")

    def _check_min_tokens(self, params: SamplingParams) -> None:
        ends = {*(params.stop_token_ids or ()), *(() if params.ignore_eos else self.eos_token_ids)}
        if len(ends) == self.vocab_size:
            raise ValueError(
                f"min_tokens: {params.min_tokens}, but each of the {self.vocab_size} tokens of the vocabulary ends "
                "the request"
            )
        if params.allowed_token_ids is not None and ends.issuperset(params.allowed_token_ids):
            raise ValueError(f"min_tokens: {params.min_tokens}, but each of allowed_token_ids ends the request")

    def max_output_tokens(self, prompt_len: int, params: SamplingParams) -> int:
        """The most tokens that a prompt of that length may generate. The continuation of a scored prompt is given and
        never stored, so such a prompt may be as long as the model's context."""
        room = self.max_model_len - prompt_len + is_scoring(params)
        return room if params.max_tokens is None else min(params.max_tokens, room)


def _joined(prompts: Sequence[Sequence[int]]) -> np.ndarray | list[int]:
    """The tokens of all prompts. Raises ValueError if their types differ."""
    array_types = {prompt.dtype if isinstance(prompt, np.ndarray) else None for prompt in prompts}
    if array_types == {None}:
        tokens = [token for prompt in prompts for token in prompt]
        if len(token_types := set(map(type, tokens))) > 1:
            raise ValueError(f"tokens of several types: {token_types}")
        return tokens
    if len(array_types) > 1:
        raise ValueError(f"prompts of several types: {array_types}")
    return np.concatenate(prompts)
