"""Text of others in messages of ours: what a terminal would obey is shown instead."""

from __future__ import annotations

from types import TracebackType


def printable(text: str) -> str:
    r"""`text` with every character that a terminal may obey or hide (controls, bidirectional marks, line separators,
    lone surrogates) written as its Python escape, `\x1b`; tabs and line breaks too. Letters of any script stay."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class as_value_error:
    """A context in which whatever a tokenizer raises is a ValueError that says what failed: a panic of its Rust code,
    too, which is no Exception."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None or isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            return
        name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{self._what}: {name}{printable(str(error))}") from error
