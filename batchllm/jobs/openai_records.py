"""The lines of an OpenAI Batch job's output and errors files.

{"id": "batch_req_...", "custom_id": "a", "response": {"status_code": 200, "body": {...}}, "error": null}
{"id": "batch_req_...", "custom_id": "a", "response": null, "error": {"code", "message", "param", "line"}}
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import msgspec

from batchllm.jobs.openai_batch import BatchRequest, LineError
from batchllm.jobs.openai_logprobs import chat_logprobs, completion_logprobs, prompt_logprobs
from batchllm.outputs import CompletionOutput, RequestOutput


def answer_record(request: BatchRequest, outputs: list[RequestOutput], model: str) -> bytes:
    """The output line of a request: outputs[i] answers its prompt i. model: the name of the one that ran."""
    unique = uuid.uuid4().hex
    completions = [completion for output in outputs for completion in output.outputs]
    prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    completion_tokens = sum(len(completion.token_ids) for completion in completions)
    body: dict[str, Any] = {
        "id": f"{'chatcmpl' if request.is_chat else 'cmpl'}-{unique}",
        "object": "chat.completion" if request.is_chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {"index": index, **choice}
            for index, choice in enumerate(
                _choice(request, output, completion) for output in outputs for completion in output.outputs
            )
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(output.num_cached_tokens for output in outputs)},
        },
    }
    if request.is_chat and outputs[0].prompt_logprobs is not None:
        body["prompt_logprobs"] = prompt_logprobs(outputs[0].prompt_logprobs)
    response = {"status_code": 200, "request_id": f"req_{unique}", "body": body}
    return _record(unique, request.custom_id, response, None)


def _choice(request: BatchRequest, output: RequestOutput, completion: CompletionOutput) -> dict[str, Any]:
    """What OpenAI has no name for has vLLM's, and is left out where there is none."""
    extra: dict[str, Any] = {} if completion.stop_reason is None else {"stop_reason": completion.stop_reason}
    if request.is_chat:
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


def error_record(error: LineError) -> bytes:
    """The line of the errors file."""
    fields = {"code": error.code, "message": str(error), "param": error.param, "line": error.line}
    return _record(uuid.uuid4().hex, error.custom_id, None, fields)


def _record(unique: str, custom_id: str | None, response: Any, error: Any) -> bytes:
    record = {"id": f"batch_req_{unique}", "custom_id": custom_id, "response": response, "error": error}
    return msgspec.json.encode(record) + b"\n"
