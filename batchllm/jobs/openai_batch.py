"""The lines of an OpenAI Batch file, read and checked.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...], ...}}

What a body says is read in openai_prompts and openai_params.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import msgspec

from batchllm.jobs.line import CHAT, DUPLICATE_ID, KINDS, BatchRequest, LineError, LineKind, brief
from batchllm.jobs.openai_body import convert, without_nulls
from batchllm.jobs.openai_params import BODY_FIELDS, DEFAULT_COMPLETIONS_MAX_TOKENS, asks_for_nothing, params_of
from batchllm.jobs.openai_prompts import PROMPT_PLACES, PROMPTS


def parse_line(data: bytes, line: int, line_of: dict[str, int], *, chat_max_tokens: int) -> BatchRequest:
    """Reads one line. Raises LineError.

    line_of: where each custom_id was first seen; this line's is added. An id belongs to the first line that has it,
    good or bad, so the output file never holds one twice.
    """
    custom_id = None
    try:
        record = _decode_object(data, line)
        custom_id = _custom_id(record)
        if (first := line_of.setdefault(custom_id, line)) != line:
            raise used_twice(custom_id, first)
        _check_keys(data, record)
        kind, body = _endpoint(record)
        prompts = PROMPTS[kind](body)
        default_max_tokens = chat_max_tokens if kind is CHAT else DEFAULT_COMPLETIONS_MAX_TOKENS
        asked = params_of(kind, body, default_max_tokens)
        return BatchRequest(
            line=line,
            custom_id=custom_id,
            kind=kind,
            model=_model_name(body),
            prompts=prompts,
            params=asked.params,
            named_fields=asked.named_fields,
            prompt_place=PROMPT_PLACES[kind],
            form=asked.form,
        )
    except LineError as error:
        raise error.at(line, custom_id) from None


def used_twice(custom_id: str, first: int) -> LineError:
    return LineError(DUPLICATE_ID, "custom_id", f"{brief(custom_id)} was used on line {first}")


def _decode_object(data: bytes, line: int) -> dict[str, Any]:
    try:
        record = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        where = f"line {line}, column {_error_column(data, error)}"
        raise LineError("invalid_json_line", None, f"{where}: {error}") from None
    if not isinstance(record, dict):
        raise LineError("invalid_json_line", None, f"line {line}: expected a JSON object, got {brief(record)}")
    return record


def _check_keys(data: bytes, record: dict[str, Any]) -> None:
    """Raises LineError if an object of the line has a key twice: readers of JSON differ in which one they use.

    record: the decoded line, which has each key once. If no key was dropped and no quotation mark is escaped in another
    form, it has as many quotation marks when written again as the line."""
    try:
        if b"\\u0022" not in data and data.count(b'"') == msgspec.json.encode(record).count(b'"'):
            return
    except OverflowError:  # an integer too large for msgspec's JSON
        pass
    try:
        _KEYS.decode(data.decode())
    except RecursionError:
        raise LineError("invalid_json_line", None, "nested too deeply") from None


def _check_pairs(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        [(key, count)] = Counter(key for key, _ in pairs).most_common(1)
        raise LineError("duplicate_key", None, f"the key {brief(key)} occurs {count} times in one object")


_KEYS = json.JSONDecoder(object_pairs_hook=_check_pairs, parse_int=float)  # of any number of digits


def _error_column(data: bytes, error: Exception) -> int:
    """Where decoding stopped, in characters from 1; the end of the line if the decoder does not say."""
    at = re.search(r"\(byte (\d+)\)", str(error))
    num_good_bytes = int(at[1]) if at else len(data)
    return len(data[:num_good_bytes].decode(errors="replace")) + 1


def _custom_id(record: dict[str, Any]) -> str:
    custom_id = record.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise LineError("invalid_custom_id", "custom_id", f"expected a non-empty string, got {brief(custom_id)}")
    return custom_id


def _endpoint(record: dict[str, Any]) -> tuple[LineKind, dict[str, Any]]:
    """The kind of line and the body's fields; null fields are dropped."""
    method, url, body = (record.get(name) for name in ("method", "url", "body"))
    if method != "POST":
        raise LineError("invalid_method", "method", f'expected "POST", got {brief(method)}')
    kind = KINDS.get(url) if isinstance(url, str) else None
    if kind is None:
        expected = " or ".join(f'"{url}"' for url in KINDS)
        raise LineError("invalid_url", "url", f"expected {expected}, got {brief(url)}")
    if not isinstance(body, dict):
        raise LineError("invalid_body", "body", f"expected an object, got {brief(body)}")
    for name in sorted(BODY_FIELDS.intersection(record)):
        if record[name] is not None and not asks_for_nothing(name, record[name]):
            raise LineError("misplaced_parameter", name, "expected inside body, got it beside body")
    return kind, without_nulls(body)


def _model_name(body: dict[str, Any]) -> str | None:
    name = body.get("model")
    return name if name is None or isinstance(name, str) else convert(name, str | None, "body.model")
