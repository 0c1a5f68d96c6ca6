"""The forms in which a caller may hand over prompts and their parameters, brought to one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

import numpy as np

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


def params_list(
    sampling_params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> list[SamplingParams]:
    """One for each prompt. Raises ValueError for another number, or for something else in the list."""
    if sampling_params is None:
        return [SamplingParams()] * num_prompts
    if isinstance(sampling_params, SamplingParams):
        return [sampling_params] * num_prompts
    sampling_params = list(sampling_params)
    for index, params in enumerate(sampling_params):
        if not isinstance(params, SamplingParams):
            raise ValueError(f"sampling_params[{index}]: expected SamplingParams, got {type(params).__name__}")
    if len(sampling_params) != num_prompts:
        raise ValueError(f"sampling_params: expected one for each of {num_prompts} prompts, got {len(sampling_params)}")
    return sampling_params
