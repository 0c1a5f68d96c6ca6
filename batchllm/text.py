"""Text of others in messages of ours: what a terminal would obey is shown instead."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""`text` with every character that a terminal may obey or hide (controls, bidirectional marks, line separators,
    lone surrogates) written as its Python escape, `\x1b`; tabs and line breaks too. Letters of any script stay."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
