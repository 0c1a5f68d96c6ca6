"""Log-probabilities as OpenAI's answers hold them, and those of prompts as vLLM's do."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from batchllm.jobs.line import PLAIN, AnswerForm
from batchllm.outputs import CompletionOutput, Logprob, RequestOutput
from batchllm.sampling_params import SamplingParams

LEAST_LOGPROB = -9999.0  # JSON has no infinity


def chat_logprobs(completion: CompletionOutput, params: SamplingParams) -> dict[str, Any] | None:
    """{"content": one entry per token, with "top_logprobs" in descending order}; None where none were asked for."""
    if completion.logprobs is None:
        return None
    content = []
    for token, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        others = sorted(_asked_for(entry, params), key=lambda item: -item[1].logprob)
        content.append(_chat_token(token, entry[token]) | {"top_logprobs": [_chat_token(*item) for item in others]})
    return {"content": content, "refusal": None}


class _Token(NamedTuple):
    text: str
    logprob: float | None
    top: dict[str, float] | None  # it and the likeliest, by text


def completion_logprobs(
    completion: CompletionOutput,
    form: AnswerForm = PLAIN,
    prompt: RequestOutput | None = None,
    first_token: str | None = None,
) -> dict[str, Any] | None:
    """Lists over the tokens; "text_offset" is where the text of each begins in the text of all.

    prompt: whose tokens come first, where the form shows them. Nothing predicts the first, whose text is first_token.
    """
    if completion.logprobs is None:
        return None
    tokens: list[_Token] = []
    if prompt is not None and prompt.prompt_logprobs is not None:
        tokens.append(_Token(_text(prompt.prompt_token_ids[0], first_token), None, None))
        tokens += map(_token, prompt.prompt_token_ids[1:], prompt.prompt_logprobs[1:])
    if form.generates:
        tokens += map(_token, completion.token_ids, completion.logprobs)
    offsets = itertools.accumulate((len(token.text) for token in tokens), initial=0)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [token.top for token in tokens],
        "text_offset": list(offsets)[: len(tokens)],
    }


def _token(token: int, entry: dict[int, Logprob] | None) -> _Token:
    assert entry is not None
    top = {_text(other, logprob.decoded_token): _number(logprob) for other, logprob in entry.items()}
    return _Token(_text(token, entry[token].decoded_token), _number(entry[token]), top)


def continuation_logprobs(output: RequestOutput) -> dict[str, Any]:
    """Of a prompt that ends with a continuation but for its last token, which is the last that is told of (see
    batchllm.continuations.scoring_params)."""
    scored = [
        (token, entry[token])
        for token, entry in zip(output.prompt_token_ids, output.prompt_logprobs or (), strict=True)
        if entry is not None
    ]
    [completion] = output.outputs
    assert completion.logprobs is not None
    scored.append(list(completion.logprobs[0].items())[-1])
    logprobs = [_number(logprob) for _, logprob in scored]
    return {
        "tokens": [_text(token, logprob.decoded_token) for token, logprob in scored],
        "token_logprobs": logprobs,
        "logprob": sum(logprobs),
        "is_greedy": all(logprob.rank == 1 for _, logprob in scored),
    }


def prompt_logprobs(entries: list[dict[int, Logprob] | None]) -> list[dict[str, Any] | None]:
    """By token id, as text; None for the first token, which nothing predicts."""

    def fields(logprob: Logprob) -> dict[str, Any]:
        return {"logprob": _number(logprob), "rank": logprob.rank, "decoded_token": logprob.decoded_token}

    return [
        None if entry is None else {str(token): fields(logprob) for token, logprob in entry.items()}
        for entry in entries
    ]


def _asked_for(entry: dict[int, Logprob], params: SamplingParams) -> list[tuple[int, Logprob]]:
    """Without the sampled token, unless it is among those asked for."""
    count = len(entry) if params.logprobs == -1 else params.logprobs or 0
    named = params.logprob_token_ids or ()
    likeliest = {token for token, _ in sorted(entry.items(), key=lambda item: item[1].rank)[:count]}
    return [item for item in entry.items() if item[0] in likeliest or item[0] in named]


def _chat_token(token: int, logprob: Logprob) -> dict[str, Any]:
    """Its bytes are null where it is no text by itself: a part of a character."""
    text = _text(token, logprob.decoded_token)
    return {
        "token": text,
        "logprob": _number(logprob),
        "bytes": None if "\ufffd" in text else list(text.encode()),
    }


def _text(token: int, decoded: str | None) -> str:
    return f"token_id:{token}" if decoded is None else decoded


def _number(logprob: Logprob) -> float:
    return max(logprob.logprob, LEAST_LOGPROB)
