"""Text of others in messages of ours: what a terminal would obey is shown instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def printable(text: str) -> str:
    r"""`text` with every character that a terminal may obey or hide (controls, bidirectional marks, line separators,
    lone surrogates) written as its Python escape, `\x1b`; tabs and line breaks too. Letters of any script stay."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def as_value_error(what: str) -> Iterator[None]:
    """Whatever a tokenizer raises is a ValueError that says what failed: a panic of its Rust code, too, which is no
    Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{what}: {kind}{printable(str(error))}") from error
