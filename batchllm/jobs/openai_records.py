"""The lines of an OpenAI Batch job's output and errors files.

{"id": "batch_req_...", "custom_id": "a", "response": {"status_code": 200, "body": {...}}, "error": null}
{"id": "batch_req_...", "custom_id": "a", "response": null, "error": {"code", "message", "param", "line"}}

The id is that of the job and the number of the line, 16 hexadecimal digits each: which lines a file has the answers of
is read from the opening of its records."""

from __future__ import annotations

import secrets
import time
from typing import Any

import msgspec

from batchllm.continuations import perplexity, probabilities
from batchllm.jobs.line import CHAT, SCORE, BatchRequest, LineError
from batchllm.jobs.openai_logprobs import chat_logprobs, completion_logprobs, continuation_logprobs, prompt_logprobs
from batchllm.outputs import CompletionOutput, RequestOutput

ID_PREFIX = "batch_req_"


def new_job_id() -> str:
    """16 hexadecimal digits."""
    return secrets.token_hex(8)


def record_opening(job_id: str) -> bytes:
    """How the records of a job begin, up to the number of their line."""
    return b'{"id":"%b%b' % (ID_PREFIX.encode(), job_id.encode())


def answer_record(request: BatchRequest, outputs: list[RequestOutput], model: str, job_id: str) -> bytes:
    """The output line of a request: outputs[i] answers its prompt i. model: the name of the one that ran."""
    unique = f"{job_id}{request.line:016x}"
    prompt_tokens = completion_tokens = cached_tokens = 0
    for output in outputs:
        prompt_tokens += len(output.prompt_token_ids)
        cached_tokens += output.num_cached_tokens
        for completion in output.outputs:
            completion_tokens += len(completion.token_ids)
    if not request.kind.draws:  # the last token of what is scored is given, too
        prompt_tokens, completion_tokens = prompt_tokens + len(outputs), 0
    body: dict[str, Any] = {
        "id": f"{request.kind.answer_id_prefix}-{unique}",
        "object": request.kind.answer_object,
        "created": int(time.time()),
        "model": model,
        **_answer(request, outputs),
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        },
    }
    if request.kind is CHAT and outputs[0].prompt_logprobs is not None:
        body["prompt_logprobs"] = prompt_logprobs(outputs[0].prompt_logprobs)
    response = {"status_code": 200, "request_id": f"req_{unique}", "body": body}
    return _record(unique, request.custom_id, response, None)


def _answer(request: BatchRequest, outputs: list[RequestOutput]) -> dict[str, Any]:
    if request.kind.draws:
        return {"choices": _choices(request, outputs)}
    return _scores(outputs) if request.kind is SCORE else _perplexity(outputs)


def _perplexity(outputs: list[RequestOutput]) -> dict[str, Any]:
    """Of all tokens but the first; the number of tokens is the usage's."""
    [score] = map(continuation_logprobs, outputs)
    return {"perplexity": perplexity(score["logprob"] / len(score["tokens"])), "logprob": score["logprob"]}


def _scores(outputs: list[RequestOutput]) -> dict[str, Any]:
    """Of each continuation, with the probability of each, given that it is one of them, and which is the likeliest."""
    scores = [{"index": index, **continuation_logprobs(output)} for index, output in enumerate(outputs)]
    logprobs = [score["logprob"] for score in scores]
    for score, probability in zip(scores, probabilities(logprobs), strict=True):
        score["probability"] = probability
    return {"choice": logprobs.index(max(logprobs)), "scores": scores}


def _choices(request: BatchRequest, outputs: list[RequestOutput]) -> list[dict[str, Any]]:
    choices = [_choice(request, output, completion) for output in outputs for completion in output.outputs]
    return [{"index": index, **choice} for index, choice in enumerate(choices)]


def _choice(request: BatchRequest, output: RequestOutput, completion: CompletionOutput) -> dict[str, Any]:
    """What OpenAI has no name for has vLLM's, and is left out where there is none."""
    extra: dict[str, Any] = {} if completion.stop_reason is None else {"stop_reason": completion.stop_reason}
    if request.kind is CHAT:
        message: dict[str, Any] = {"role": "assistant", "content": completion.content, "refusal": None}
        if completion.reasoning_content is not None:
            message["reasoning_content"] = completion.reasoning_content
        answer: dict[str, Any] = {"message": message}
        logprobs = chat_logprobs(completion, request.params)
    else:
        answer = {"text": completion.text}
        logprobs = completion_logprobs(completion)
        if output.prompt_logprobs is not None:
            extra["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs)
    return {**answer, "finish_reason": completion.finish_reason, **extra, "logprobs": logprobs}


def error_record(error: LineError, job_id: str) -> bytes:
    """The line of the errors file."""
    fields = {"code": error.code, "message": str(error), "param": error.param, "line": error.line}
    return _record(f"{job_id}{error.line or 0:016x}", error.custom_id, None, fields)


def _record(unique: str, custom_id: str | None, response: Any, error: Any) -> bytes:
    record = {"id": f"{ID_PREFIX}{unique}", "custom_id": custom_id, "response": response, "error": error}
    return msgspec.json.encode(record) + b"\n"
