"""Batch lines for tests, and the files they are read back from."""

import json
from pathlib import Path
from typing import Any

import pytest

from batchllm.jobs.line import BatchRequest, LineError
from batchllm.jobs.openai_batch import parse_line
from batchllm.jobs.sources import open_source


def chat_line(custom_id: str, content: Any = "Hello", **body: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": content}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def completion_line(custom_id: str, prompt: Any = "Hello", **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": {"prompt": prompt, **body}}


def score_line(custom_id: str, prompt: Any, continuations: Any, **body: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "continuations": continuations, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/score", "body": body}


def perplexity_line(custom_id: str, prompt: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/perplexity", "body": {"prompt": prompt}}


def parse(line: dict[str, Any] | bytes, **line_of: int) -> BatchRequest:
    data = line if isinstance(line, bytes) else json.dumps(line).encode()
    return parse_line(data, 7, line_of, chat_max_tokens=99)


def refusal(line: dict[str, Any] | bytes, **line_of: int) -> LineError:
    with pytest.raises(LineError) as caught:
        parse(line, **line_of)
    assert caught.value.line == 7
    return caught.value


def write_lines(path: Path, lines: list[dict[str, Any] | bytes]) -> Path:
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


def read_records(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def read_source(path: Path) -> list[BatchRequest | LineError]:
    with open_source(path, chat_max_tokens=1) as source:
        return list(source.requests())
