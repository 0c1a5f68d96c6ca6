"""Typed values from an untrusted JSON object. A wrong type is a ValueError that names the field."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batchllm.sampling_params import MAX_INT32

MIN_NUMBER, MAX_NUMBER = 1.2e-38, 3.4e38  # normal numbers of float32


class Unsupported(ValueError):
    """A valid model that the back end does not run."""


def positive_int(raw: dict[str, Any], name: str, default: int | None = None, at_most: int = MAX_INT32) -> int:
    """raw[name], or the default if that is missing or null. Raises ValueError that names the field."""
    value = raw.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r:.80}")
    if value > at_most:
        raise ValueError(f"{name}: expected at most {at_most}, got {value}")
    return value


def flag(raw: dict[str, Any], name: str, default: bool = False) -> bool:
    """raw[name], or the default if that is missing or null."""
    value = raw.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected true or false, got {value!r:.80}")
    return value


def number(name: str, value: Any, at_most: float = MAX_NUMBER) -> float:
    """A positive number that float32 can hold."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not MIN_NUMBER <= value <= at_most:
        limit = "" if at_most == MAX_NUMBER else f" of at most {at_most:g}"
        raise ValueError(f"{name}: expected a positive number{limit} in float32, got {value!r:.80}")
    return float(value)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Prefixes a ValueError or Unsupported with the file's name."""
    try:
        yield
    except ValueError as error:
        kind = Unsupported if isinstance(error, Unsupported) else ValueError
        raise kind(f"{path}: {error}") from None
