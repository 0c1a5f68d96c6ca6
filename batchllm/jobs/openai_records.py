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

from batchllm.jobs.line import CHAT, BatchRequest, LineError
from batchllm.outputs import RequestOutput

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
    is_chat = request.kind is CHAT
    completions = [completion for output in outputs for completion in output.outputs]
    prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    completion_tokens = sum(len(completion.token_ids) for completion in completions)
    body = {
        "id": f"{request.kind.answer_id_prefix}-{unique}",
        "object": request.kind.answer_object,
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": index,
                **(
                    {"message": {"role": "assistant", "content": completion.text, "refusal": None}}
                    if is_chat
                    else {"text": completion.text}
                ),
                "finish_reason": completion.finish_reason,
                **({} if completion.stop_reason is None else {"stop_reason": completion.stop_reason}),  # as vLLM has it
                "logprobs": None,
            }
            for index, completion in enumerate(completions)
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(output.num_cached_tokens for output in outputs)},
        },
    }
    response = {"status_code": 200, "request_id": f"req_{unique}", "body": body}
    return _record(unique, request.custom_id, response, None)


def error_record(error: LineError, job_id: str) -> bytes:
    """The line of the errors file."""
    fields = {"code": error.code, "message": str(error), "param": error.param, "line": error.line}
    return _record(f"{job_id}{error.line or 0:016x}", error.custom_id, None, fields)


def _record(unique: str, custom_id: str | None, response: Any, error: Any) -> bytes:
    record = {"id": f"{ID_PREFIX}{unique}", "custom_id": custom_id, "response": response, "error": error}
    return msgspec.json.encode(record) + b"\n"
