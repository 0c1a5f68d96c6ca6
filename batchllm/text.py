"""Untrusted text in our messages: control characters are shown, not obeyed."""

from __future__ import annotations

from types import TracebackType


def printable(text: str) -> str:
    r"""`text` with every character that a terminal may obey or hide (controls, bidirectional marks, line separators,
    lone surrogates, also tabs and line breaks) as its Python escape, such as `\x1b`. Letters of any script stay."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class as_value_error:
    """A context that turns whatever a tokenizer raises into a ValueError that says what failed, even a panic of its
    Rust code, which is not an Exception."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None or isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            return
        name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{self._what}: {name}{printable(str(error))}") from error
