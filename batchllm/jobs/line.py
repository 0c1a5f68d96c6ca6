"""What a job is made of: lines, each of which is a request that gets one answer, or an error that says why not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from batchllm.outputs import EchoedPrompt
from batchllm.sampling_params import SamplingParams


class LineKind(NamedTuple):
    """An endpoint, OpenAI's or ours, as a line names it and its answer shows it."""

    url: str
    prompt_fields: tuple[str, ...]  # of the body, the prompt's own first: what nearly every line has another of
    answer_object: str
    answer_id_prefix: str
    draws: bool = True  # tokens, or else those that are given are scored


CHAT = LineKind("/v1/chat/completions", ("messages",), "chat.completion", "chatcmpl")
COMPLETION = LineKind("/v1/completions", ("prompt",), "text_completion", "cmpl")
SCORE = LineKind("/v1/score", ("prompt", "continuations"), "score", "score", draws=False)  # ours, as the next
PERPLEXITY = LineKind("/v1/perplexity", ("prompt",), "perplexity", "ppl", draws=False)
KINDS = {kind.url: kind for kind in (CHAT, COMPLETION, SCORE, PERPLEXITY)}


@dataclass(frozen=True)
class Conversation:
    messages: list[dict[str, Any]]  # as chat templates take them: role and content, and of a tool turn its calls
    template_options: dict[str, Any] = field(default_factory=dict)  # chat_template_kwargs, where there are any


@dataclass(frozen=True)
class ContinuedPrompt:
    """One whose continuation is scored."""

    prompt: str | list[int]
    continuation: str | list[int]


@dataclass(frozen=True)
class ScoredText:
    """One of which all tokens but the first are scored."""

    prompt: str | list[int]


class AnswerForm(msgspec.Struct, frozen=True):
    """How an answer shows what was generated, where it is more than its text."""

    echo: bool = False  # the prompt stands before it
    generates: bool = True  # False: the prompt stands alone, without the one token that was drawn
    function: str | None = None  # the text is the arguments of a call of this function
    is_calls: bool = False  # the text is a list of calls


PLAIN = AnswerForm()

BatchPrompt = str | list[int] | Conversation | ContinuedPrompt | ScoredText


DUPLICATE_ID = "duplicate_custom_id"


class LineError(Exception):
    """Why a line gets no answer."""

    def __init__(self, code: str, param: str | None, reason: str) -> None:
        super().__init__(code, param, reason)
        self.code = code
        self.param = param
        self.reason = reason
        self.line: int | None = None
        self.custom_id: str | None = None

    def __str__(self) -> str:
        return f"{self.param}: {self.reason}" if self.param else self.reason

    def at(self, line: int, custom_id: str | None) -> LineError:
        self.line, self.custom_id = line, custom_id
        return self


@dataclass(slots=True)
class BatchRequest:
    """One line. Its prompts' completions become the choices of one answer, in order."""

    line: int  # from 1
    custom_id: str
    kind: LineKind
    model: str | None
    prompts: Sequence[BatchPrompt]
    params: SamplingParams
    named_fields: frozenset[str] = frozenset()  # of the parameters, those that the line gives
    prompt_place: str = ""  # where the prompt stands in the line, as errors name it
    form: AnswerForm = PLAIN
    echoed: Sequence[EchoedPrompt] = ()  # the prompts, once they are answered, where the form is to show them

    def names_another(self, model_name: str) -> bool:
        """Whether the line names a model, by itself or after a directory or an organisation, other than that."""
        return self.model is not None and self.model.rstrip("/").rpartition("/")[2] != model_name

    def params_with(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """With fields that the line does not give; its limit is the command's or OpenAI's."""
        absent = {k: v for k, v in defaults.items() if k not in self.named_fields and k != "max_tokens"}
        return msgspec.structs.replace(self.params, **absent) if absent else self.params

    def seeded_params(self, prompt_index: int, job_seed: int) -> SamplingParams:
        """The line's own seed, or one made from its custom_id: the order of the file never changes an answer. A greedy
        request draws nothing."""
        if self.params.seed is not None or self.params.greedy:
            return self.params
        name = f"{job_seed}/{prompt_index}/{self.custom_id}"
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")
        params = copy(self.params)  # `replace` would check every field anew
        msgspec.structs.force_setattr(params, "seed", seed)
        return params


def brief(value: Any) -> str:
    """A value as JSON, for a message."""
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
