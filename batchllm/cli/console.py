"""Output for people: to a terminal, or to a stream that may fail."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console

from batchllm.text import printable

PIPED_WIDTH = 140  # of tables, if the output is no terminal


def console_of(stream: TextIO, *, piped_width: int | None = None) -> Console:
    """Prints control codes only to a terminal, whatever the environment asks for."""
    is_terminal = stream.isatty()
    return Console(file=stream, force_terminal=is_terminal, width=None if is_terminal else piped_width)


def say(console: Console, text: str, style: str | None = None) -> None:
    """Prints a line, wrapped only by the terminal, without control codes."""
    console.print(printable(text), style=style, highlight=False, markup=False, soft_wrap=True)


class BestEffort:
    """A standard stream that drops what it cannot write: a closed pipe or a full disk under a log ends no job."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[..., object], *args: str) -> None:
        try:
            action(*args)
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)  # also for buffered text, which Python writes when it exits
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def best_effort(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed
        return open(os.devnull, "w")
    stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    return BestEffort(stream)  # type: ignore[return-value]
