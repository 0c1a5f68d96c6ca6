"""Log-probabilities as OpenAI's answers hold them, and those of prompts as vLLM's do."""

from __future__ import annotations

from typing import Any

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


def completion_logprobs(completion: CompletionOutput) -> dict[str, Any] | None:
    """Lists over the tokens; "text_offset" is where the text of each begins in the text of all."""
    if completion.logprobs is None:
        return None
    entries = list(zip(completion.token_ids, completion.logprobs, strict=True))
    tokens = [_text(token, entry[token]) for token, entry in entries]
    offsets = [0]
    for text in tokens[:-1]:
        offsets.append(offsets[-1] + len(text))
    return {
        "tokens": tokens,
        "token_logprobs": [_number(entry[token]) for token, entry in entries],
        "top_logprobs": [
            {_text(token, logprob): _number(logprob) for token, logprob in entry.items()} for _, entry in entries
        ],
        "text_offset": offsets[: len(tokens)],
    }


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
        "tokens": [_text(*item) for item in scored],
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
    """Without the sampled token, where it is there for nothing else."""
    count = len(entry) if params.logprobs == -1 else params.logprobs or 0
    named = params.logprob_token_ids or ()
    likeliest = {token for token, _ in sorted(entry.items(), key=lambda item: item[1].rank)[:count]}
    return [item for item in entry.items() if item[0] in likeliest or item[0] in named]


def _chat_token(token: int, logprob: Logprob) -> dict[str, Any]:
    """Its bytes are null where it is no text by itself: a part of a character."""
    text = _text(token, logprob)
    return {
        "token": text,
        "logprob": _number(logprob),
        "bytes": None if "\ufffd" in text else list(text.encode()),
    }


def _text(token: int, logprob: Logprob) -> str:
    return f"token_id:{token}" if logprob.decoded_token is None else logprob.decoded_token


def _number(logprob: Logprob) -> float:
    return max(logprob.logprob, LEAST_LOGPROB)
