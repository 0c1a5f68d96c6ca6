"""From the lines of a source to prompts in token ids."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from batchllm.continuations import Continuation, continuation_of, scoring_params, text_after_first_token
from batchllm.jobs.line import (
    CHAT,
    BatchPrompt,
    BatchRequest,
    ContinuedPrompt,
    Conversation,
    LineError,
    ScoredText,
)
from batchllm.sampling.compile_grammar import GrammarError
from batchllm.sampling_params import SamplingParams
from batchllm.tokenizer import Message

LINES_AT_ONCE = 256  # that are tokenized together


class PromptReader(Protocol):
    """The part of `LLM` that makes token ids of prompts and says which it takes."""

    def tokenize(self, texts: list[str]) -> list[list[int]]: ...
    def apply_chat_template(self, messages: Sequence[Message], **options: Any) -> list[int]: ...
    def check_chat_template(self) -> None: ...
    def check_request(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None: ...


class TokenizedLine(NamedTuple):
    request: BatchRequest
    token_ids: list[list[int]]  # of each prompt
    params: list[SamplingParams]  # of each prompt


def tokenized(
    lines: Iterable[BatchRequest | LineError], reader: PromptReader, *, seed: int
) -> Iterator[TokenizedLine | LineError]:
    """The same lines in their order, those that could never run as errors. seed: the job's.

    Raises ValueError where the first conversation finds no template that could render any.
    """
    is_template_checked = False
    lines = iter(lines)
    while some := list(itertools.islice(lines, LINES_AT_ONCE)):
        requests = [line for line in some if isinstance(line, BatchRequest)]
        if not is_template_checked and any(request.kind is CHAT for request in requests):
            reader.check_chat_template()
            is_template_checked = True
        texts = encoded([text for request in requests for p in request.prompts for text in texts_of(p)], reader)
        for line in some:
            if isinstance(line, LineError):
                yield line
                continue
            try:
                yield _tokenized(line, reader, texts, seed)
            except GrammarError as error:
                yield LineError("invalid_body", "body", str(error)).at(line.line, line.custom_id)
            except ValueError as error:
                yield LineError("invalid_prompt", line.prompt_place, str(error)).at(line.line, line.custom_id)


def texts_of(prompt: BatchPrompt) -> list[str]:
    """What of it is encoded as a prompt is."""
    if isinstance(prompt, ContinuedPrompt) and isinstance(prompt.prompt, str):
        whole = [prompt.prompt + prompt.continuation] if isinstance(prompt.continuation, str) else []
        return [prompt.prompt, *whole]
    if isinstance(prompt, ScoredText):
        return texts_of(prompt.prompt)
    return [prompt] if isinstance(prompt, str) else []


def encoded(texts: list[str], reader: PromptReader) -> dict[str, list[int] | ValueError]:
    """Token ids of each text, or why it has none; all at once where that goes well."""
    try:
        return dict(zip(texts, reader.tokenize(texts), strict=True)) if texts else {}
    except ValueError:
        result: dict[str, list[int] | ValueError] = {}
        for text in texts:
            try:
                result[text] = reader.tokenize([text])[0]
            except ValueError as error:
                result[text] = error
        return result


def _tokenized(
    request: BatchRequest, reader: PromptReader, texts: dict[str, list[int] | ValueError], seed: int
) -> TokenizedLine:
    token_ids: list[list[int]] = []
    params: list[SamplingParams] = []
    for at, prompt in enumerate(request.prompts):
        try:
            if isinstance(prompt, (ContinuedPrompt, ScoredText)):
                continuation = _continuation(prompt, reader, texts)
                *ids, last = continuation.token_ids
                params.append(scoring_params(continuation.begin, [last]))
            else:
                ids = _token_ids(prompt, reader, texts)
                params.append(request.seeded_params(at, seed))
            reader.check_request(ids, params[-1])
        except ValueError as error:
            if isinstance(prompt, ContinuedPrompt):
                raise ValueError(f"continuation {at}: {error}") from None
            raise
        token_ids.append(ids)
    return TokenizedLine(request, token_ids, params)


def _token_ids(
    prompt: str | list[int] | Conversation, reader: PromptReader, texts: dict[str, list[int] | ValueError]
) -> list[int]:
    if isinstance(prompt, Conversation):
        return reader.apply_chat_template(prompt.messages, **prompt.template_options)
    if not isinstance(prompt, str):
        return prompt
    found = texts[prompt]
    if isinstance(found, ValueError):
        raise found
    return found


def _continuation(
    prompt: ContinuedPrompt | ScoredText, reader: PromptReader, texts: dict[str, list[int] | ValueError]
) -> Continuation:
    before = _token_ids(prompt.prompt, reader, texts)
    if isinstance(prompt, ScoredText):
        return text_after_first_token(before)
    if isinstance(prompt.continuation, list):
        return continuation_of(before, [*before, *prompt.continuation])
    if isinstance(prompt.prompt, list):
        raise ValueError("expected token ids after a prompt of token ids, got text")
    return continuation_of(before, _token_ids(prompt.prompt + prompt.continuation, reader, texts))
