"""The command line: what all commands share, and how it starts and ends.

Slow imports happen inside the commands, so that `batchllm --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from batchllm.cli.console import best_effort, say
from batchllm.dependencies import check_dependencies

EXIT_NOT_RUN, EXIT_SOME_LINES_FAILED, EXIT_OUT_OF_TIME, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 3, 124, 130, 143

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a job as Ctrl-C does."""


@contextmanager
def exit_status(log: Console, when_interrupted: str = "") -> Iterator[None]:
    """Reports in one line what ended a command early, and exits with its status. Slow imports belong inside."""
    try:
        check_dependencies()
        yield
    except (ImportError, OSError, ValueError) as error:
        say(log, f"batchllm: {error}", style="red")
        raise typer.Exit(EXIT_NOT_RUN) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0] or "no more could be had"
        say(log, f"batchllm: out of memory; --kv-cache-tokens and --max-batch-tokens bound it: {reason}", style="red")
        raise typer.Exit(EXIT_NOT_RUN) from None
    except KeyboardInterrupt as stop:
        from batchllm.jobs.run import OutOfTime

        cause = stop.__cause__ or stop
        word, status = "interrupted", EXIT_INTERRUPTED
        if isinstance(cause, Terminated):
            word, status = "terminated", EXIT_TERMINATED
        elif isinstance(cause, OutOfTime):
            word, status = "out of time", EXIT_OUT_OF_TIME
        say(log, f"batchllm: {word}{f'; {stop}' if stop.args else when_interrupted}")
        raise typer.Exit(status) from None


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: by Python's error, a GPU's, or torch's message about a CPU."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


def print_version(wanted: bool) -> None:
    if wanted:
        from batchllm import __version__

        print(f"batchllm {__version__}")
        raise typer.Exit


@app.callback()
def batchllm(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Offline LLM inference for prompts that share prefixes."""


def terminate(*_: object) -> NoReturn:
    raise Terminated


def main() -> None:
    # If a standard stream is closed, the next file opened would get its number, and receive its output.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout, sys.stderr = best_effort(sys.stdout), best_effort(sys.stderr)
    signal.signal(signal.SIGTERM, terminate)
    app()
