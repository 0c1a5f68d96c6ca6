"""Values of a line's body: brought to the types that are expected, or refused by their place."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from batchllm.jobs.line import LineError


def without_nulls(value: Any) -> Any:
    return {name: v for name, v in value.items() if v is not None} if isinstance(value, dict) else value


def convert(value: Any, expected: Any, where: str) -> Any:
    """`value` as that type, or the place and the reason: "Expected `int`, got `str` - at `$.n`" is at body.n."""
    try:
        return msgspec.convert(value, expected, str_keys=True)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `")
        path = path.removeprefix("key` in `").removeprefix("$").rstrip("`")
        if not path and re.match(r"[\w\[\]]+: ", reason):  # SamplingParams names its field itself
            field, _, reason = reason.partition(": ")
            path = f".{field}"
        raise LineError("invalid_body", where + path, reason[0].lower() + reason[1:]) from None
