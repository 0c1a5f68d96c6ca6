"""The lines of an OpenAI Batch job's output and errors files.

{"id": "batch_req_...", "custom_id": "a", "response": {"status_code": 200, "body": {...}}, "error": null}
{"id": "batch_req_...", "custom_id": "a", "response": null, "error": {"code", "message", "param", "line"}}

The id holds the job's id and the line number, 16 hexadecimal digits each, so the start of each record tells which line
it answers."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from batchllm.continuations import perplexity, probabilities
from batchllm.jobs.line import CHAT, SCORE, BatchRequest, LineError
from batchllm.jobs.openai_logprobs import chat_logprobs, completion_logprobs, continuation_logprobs, prompt_logprobs
from batchllm.jobs.openai_tools import calls_in
from batchllm.outputs import CompletionOutput, EchoedPrompt, RequestOutput

ID_PREFIX = "batch_req_"


# The fields of nearly every record, in order. UNSET fields are left out. Fields without an OpenAI name have vLLM's, and
# appear only if they have a value.


class _Function(msgspec.Struct, gc=False):
    name: str
    arguments: str


class _ToolCall(msgspec.Struct, gc=False):
    id: str
    function: _Function
    type: str = "function"


class _Message(msgspec.Struct, gc=False):
    role: str
    content: str | None
    refusal: None
    reasoning_content: str | UnsetType
    tool_calls: list[_ToolCall] | UnsetType


class _Choice(msgspec.Struct, gc=False):
    index: int
    message: _Message | UnsetType  # of a chat
    text: str | UnsetType  # of a completion
    finish_reason: str | None
    stop_reason: int | str | UnsetType
    prompt_logprobs: list[dict[str, Any] | None] | UnsetType
    logprobs: dict[str, Any] | None


class _CachedTokens(msgspec.Struct, gc=False):
    cached_tokens: int


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _CachedTokens


class _Response(msgspec.Struct, gc=False):
    status_code: int
    request_id: str
    body: dict[str, Any]


class _Record(msgspec.Struct, gc=False):
    id: str
    custom_id: str | None
    response: _Response | None
    error: dict[str, Any] | None


def new_job_id() -> str:
    """16 hexadecimal digits."""
    return secrets.token_hex(8)


def record_opening(job_id: str) -> bytes:
    """How the records of a job begin, up to the line number."""
    return b'{"id":"%b%b' % (ID_PREFIX.encode(), job_id.encode())


def answer_record(request: BatchRequest, outputs: list[RequestOutput], model: str, job_id: str) -> bytes:
    """The output line of a request: outputs[i] answers its prompt i. model: the name of the model that ran."""
    unique = f"{job_id}{request.line:016x}"
    prompt_tokens = completion_tokens = cached_tokens = 0
    for output in outputs:
        prompt_tokens += len(output.prompt_token_ids)
        cached_tokens += output.num_cached_tokens
        for completion in output.outputs:
            completion_tokens += len(completion.token_ids)
    if not request.form.generates:
        completion_tokens = 0
    if not request.kind.draws:  # the last token of what is scored is given, too
        prompt_tokens, completion_tokens = prompt_tokens + len(outputs), 0
    body: dict[str, Any] = {
        "id": f"{request.kind.answer_id_prefix}-{unique}",
        "object": request.kind.answer_object,
        "created": int(time.time()),
        "model": model,
        **_answer(request, outputs, unique),
        "usage": _Usage(
            prompt_tokens, completion_tokens, prompt_tokens + completion_tokens, _CachedTokens(cached_tokens)
        ),
    }
    if request.kind is CHAT and outputs[0].prompt_logprobs is not None:
        body["prompt_logprobs"] = prompt_logprobs(outputs[0].prompt_logprobs)
    return _line(_Record(f"{ID_PREFIX}{unique}", request.custom_id, _Response(200, f"req_{unique}", body), None))


def _answer(request: BatchRequest, outputs: list[RequestOutput], unique: str) -> dict[str, Any]:
    if request.kind.draws:
        return {"choices": _choices(request, outputs, unique)}
    return _scores(outputs) if request.kind is SCORE else _perplexity(outputs)


def _perplexity(outputs: list[RequestOutput]) -> dict[str, Any]:
    """Over all tokens except the first; the usage has the number of tokens."""
    [score] = map(continuation_logprobs, outputs)
    return {"perplexity": perplexity(score["logprob"] / len(score["tokens"])), "logprob": score["logprob"]}


def _scores(outputs: list[RequestOutput]) -> dict[str, Any]:
    """The scores of each continuation, their probabilities among the continuations, and the likeliest one."""
    scores = [{"index": index, **continuation_logprobs(output)} for index, output in enumerate(outputs)]
    logprobs = [score["logprob"] for score in scores]
    for score, probability in zip(scores, probabilities(logprobs), strict=True):
        score["probability"] = probability
    return {"choice": logprobs.index(max(logprobs)), "scores": scores}


def _choices(request: BatchRequest, outputs: list[RequestOutput], unique: str) -> list[_Choice]:
    if request.kind is CHAT:
        completions = itertools.chain.from_iterable(output.outputs for output in outputs)
        return [_chat_choice(index, of, request, unique) for index, of in enumerate(completions)]
    echoed: Sequence[EchoedPrompt | None] = request.echoed or [None] * len(outputs)
    of_prompts = [(output, echo, of) for output, echo in zip(outputs, echoed, strict=True) for of in output.outputs]
    return [_completion_choice(index, request, *of) for index, of in enumerate(of_prompts)]


def _chat_choice(index: int, completion: CompletionOutput, request: BatchRequest, unique: str) -> _Choice:
    reasoning = UNSET if completion.reasoning_content is None else completion.reasoning_content
    stop_reason = UNSET if completion.stop_reason is None else completion.stop_reason
    message = _Message("assistant", completion.content, None, reasoning, UNSET)
    finish_reason = completion.finish_reason
    if calls := calls_in(completion.text, request.form):
        called = [_ToolCall(f"call_{unique}{index:02x}{i:04x}", _Function(*call)) for i, call in enumerate(calls)]
        message = _Message("assistant", None, None, UNSET, called)
        if request.form.is_calls and finish_reason == "stop":  # of a function that the line names OpenAI's is "stop"
            finish_reason = "tool_calls"
    logprobs = chat_logprobs(completion, request.params)
    return _Choice(index, message, UNSET, finish_reason, stop_reason, UNSET, logprobs)


def _completion_choice(
    index: int, request: BatchRequest, output: RequestOutput, echo: EchoedPrompt | None, completion: CompletionOutput
) -> _Choice:
    stop_reason = UNSET if completion.stop_reason is None else completion.stop_reason
    scored = UNSET if output.prompt_logprobs is None else prompt_logprobs(output.prompt_logprobs)
    if echo is None:
        logprobs = completion_logprobs(completion)
        return _Choice(index, UNSET, completion.text, completion.finish_reason, stop_reason, scored, logprobs)
    finish_reason, text = completion.finish_reason, echo.text + completion.text
    if not request.form.generates:
        finish_reason, stop_reason, text = "length", UNSET, echo.text
    logprobs = completion_logprobs(completion, request.form, output, echo.first_token)
    if logprobs is not None:  # they are told of there
        scored = UNSET
    return _Choice(index, UNSET, text, finish_reason, stop_reason, scored, logprobs)


def error_record(error: LineError, job_id: str) -> bytes:
    """The line of the errors file."""
    fields = {"code": error.code, "message": str(error), "param": error.param, "line": error.line}
    return _line(_Record(f"{ID_PREFIX}{job_id}{error.line or 0:016x}", error.custom_id, None, fields))


def _line(record: _Record) -> bytes:
    return msgspec.json.encode(record) + b"\n"
