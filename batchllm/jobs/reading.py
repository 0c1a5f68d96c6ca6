"""Turns the lines of a source into prompts of token ids."""

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
    """The part of `LLM` that tokenizes prompts and checks them."""

    def tokenize(self, texts: list[str]) -> list[list[int]]: ...
    def apply_chat_template(self, messages: Sequence[Message], **options: Any) -> list[int]: ...
    def check_chat_template(self) -> None: ...
    def check_request(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None: ...
    def check_requests(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> None: ...


class TokenizedLine(NamedTuple):
    request: BatchRequest
    token_ids: list[list[int]]  # of each prompt
    params: list[SamplingParams]  # of each prompt


def tokenized(
    lines: Iterable[BatchRequest | LineError], reader: PromptReader, *, seed: int
) -> Iterator[TokenizedLine | LineError]:
    """The same lines in their order; those that could never run become errors. seed: the job's.

    Raises ValueError if there is no template that could render a conversation.
    """
    is_template_checked = False
    lines = iter(lines)
    while some := list(itertools.islice(lines, LINES_AT_ONCE)):
        requests = [line for line in some if isinstance(line, BatchRequest)]
        if not is_template_checked and any(request.kind is CHAT for request in requests):
            reader.check_chat_template()
            is_template_checked = True
        texts = encoded([text for request in requests for p in request.prompts for text in texts_of(p)], reader)
        made = [line if isinstance(line, LineError) else _tokenized(line, reader, texts, seed) for line in some]
        yield from checked(made, reader)


def checked(lines: Sequence[TokenizedLine | LineError], reader: PromptReader) -> Iterable[TokenizedLine | LineError]:
    """The same lines; those that the model does not accept become errors."""
    return lines if _are_taken(lines, reader) else (_checked(line, reader) for line in lines)


def _are_taken(lines: Sequence[TokenizedLine | LineError], reader: PromptReader) -> bool:
    """Whether each request could run, checked all at once."""
    good = [line for line in lines if not isinstance(line, LineError)]
    try:
        reader.check_requests(
            [ids for line in good for ids in line.token_ids], [p for line in good for p in line.params]
        )
    except ValueError:
        return False
    return True


def _checked(line: TokenizedLine | LineError, reader: PromptReader) -> TokenizedLine | LineError:
    if isinstance(line, LineError):
        return line
    for at, (ids, params) in enumerate(zip(line.token_ids, line.params, strict=True)):
        try:
            reader.check_request(ids, params)
        except ValueError as error:
            return _line_error(line.request, at, error)
    return line


def _line_error(request: BatchRequest, at: int, error: ValueError) -> LineError:
    """The error of its prompt number `at`."""
    if isinstance(error, GrammarError):
        code, where, reason = "invalid_body", "body", str(error)
    else:
        is_continued = isinstance(request.prompts[at], ContinuedPrompt)
        code, where, reason = (
            "invalid_prompt",
            request.prompt_place,
            f"continuation {at}: {error}" if is_continued else str(error),
        )
    return LineError(code, where, reason).at(request.line, request.custom_id)


def texts_of(prompt: BatchPrompt) -> list[str]:
    """The part of it that is encoded like a prompt."""
    if isinstance(prompt, ContinuedPrompt) and isinstance(prompt.prompt, str):
        whole = [prompt.prompt + prompt.continuation] if isinstance(prompt.continuation, str) else []
        return [prompt.prompt, *whole]
    if isinstance(prompt, ScoredText):
        return texts_of(prompt.prompt)
    return [prompt] if isinstance(prompt, str) else []


def encoded(texts: list[str], reader: PromptReader) -> dict[str, list[int] | ValueError]:
    """Token ids of each text, or the error; all at once if that succeeds."""
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
) -> TokenizedLine | LineError:
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
        except ValueError as error:
            return _line_error(request, at, error)
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
