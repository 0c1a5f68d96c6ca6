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
# That are rendered together, in the time that a template has for one.
CONVERSATIONS_AT_ONCE = 32
Encoded = list[int] | ValueError  # token ids of a prompt, or why it has none


class PromptReader(Protocol):
    """The part of `LLM` that tokenizes prompts and checks them."""

    def tokenize(self, texts: list[str]) -> list[list[int]]: ...
    def apply_chat_templates(self, conversations: Sequence[Sequence[Message]], **options: Any) -> list[list[int]]: ...
    def check_chat_template(self) -> None: ...
    def check_request(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None: ...
    def check_requests(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> None: ...


class Known(NamedTuple):
    """Prompts that were encoded together."""

    texts: dict[str, Encoded]
    conversations: dict[int, Encoded]  # by id


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
        prompts = [prompt for request in requests for prompt in request.prompts]
        known = Known(
            encoded([text for prompt in prompts for text in texts_of(prompt)], reader),
            rendered([prompt for prompt in prompts if isinstance(prompt, Conversation)], reader),
        )
        made = [line if isinstance(line, LineError) else _tokenized(line, known, seed) for line in some]
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


def rendered(conversations: Sequence[Conversation], reader: PromptReader) -> dict[int, Encoded]:
    """Token ids of each, by its id, or the error; those with the same options at once if that succeeds."""
    alike: dict[str, list[Conversation]] = {}
    for conversation in conversations:
        alike.setdefault(_options_text(conversation), []).append(conversation)
    result: dict[int, Encoded] = {}
    for group in alike.values():
        for begin in range(0, len(group), CONVERSATIONS_AT_ONCE):
            some = group[begin : begin + CONVERSATIONS_AT_ONCE]
            result |= zip(map(id, some), _rendered(some, reader), strict=True)
    return result


def _options_text(conversation: Conversation) -> str:
    """Equal for conversations with the same options."""
    try:
        return str(conversation.template_options)
    except RecursionError:
        return f"those of {id(conversation)}"


def _rendered(some: Sequence[Conversation], reader: PromptReader) -> Sequence[Encoded]:
    try:
        return reader.apply_chat_templates([of.messages for of in some], **some[0].template_options)
    except ValueError as error:
        return [error] if len(some) == 1 else [_rendered([one], reader)[0] for one in some]


def encoded(texts: list[str], reader: PromptReader) -> dict[str, Encoded]:
    """Token ids of each text, or the error; all at once if that succeeds."""
    try:
        return dict(zip(texts, reader.tokenize(texts), strict=True)) if texts else {}
    except ValueError:
        result: dict[str, Encoded] = {}
        for text in texts:
            try:
                result[text] = reader.tokenize([text])[0]
            except ValueError as error:
                result[text] = error
        return result


def _tokenized(request: BatchRequest, known: Known, seed: int) -> TokenizedLine | LineError:
    token_ids: list[list[int]] = []
    params: list[SamplingParams] = []
    for at, prompt in enumerate(request.prompts):
        try:
            if isinstance(prompt, (ContinuedPrompt, ScoredText)):
                continuation = _continuation(prompt, known)
                *ids, last = continuation.token_ids
                params.append(scoring_params(continuation.begin, [last]))
            else:
                ids = _token_ids(prompt, known)
                params.append(request.seeded_params(at, seed))
        except ValueError as error:
            return _line_error(request, at, error)
        token_ids.append(ids)
    return TokenizedLine(request, token_ids, params)


def _token_ids(prompt: str | list[int] | Conversation, known: Known) -> list[int]:
    if isinstance(prompt, list):
        return prompt
    found = known.texts[prompt] if isinstance(prompt, str) else known.conversations[id(prompt)]
    if isinstance(found, ValueError):
        raise found
    return found


def _continuation(prompt: ContinuedPrompt | ScoredText, known: Known) -> Continuation:
    before = _token_ids(prompt.prompt, known)
    if isinstance(prompt, ScoredText):
        return text_after_first_token(before)
    if isinstance(prompt.continuation, list):
        return continuation_of(before, [*before, *prompt.continuation])
    if isinstance(prompt.prompt, list):
        raise ValueError("expected token ids after a prompt of token ids, got text")
    return continuation_of(before, _token_ids(prompt.prompt + prompt.continuation, known))
