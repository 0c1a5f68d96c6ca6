"""A contestant as seen from outside: a command in a process group of its own, stopped whenever it is not its turn."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import tempfile
import threading
from contextlib import suppress
from typing import Any

STDERR_TAIL_LINES = 15
SECONDS_TO_END = 10.0


class ContestantError(Exception):
    """A contestant ended, or did not answer in time; with the last lines of its standard error."""


class ContestantProcess:
    """Runs only within `ask`; stopped, none of its threads can spin or poll while others are measured.

    It stays in our session: should we die without `close`, its group is an orphaned one with stopped members, and the
    kernel ends those (SIGHUP).
    """

    def __init__(self, name: str, command: str) -> None:
        self.name = name
        self.stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115, close() closes it
        self.process = subprocess.Popen(
            shlex.split(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
            preexec_fn=os.setpgrp,
        )

    def ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The contestant's answer. Raises ContestantError, and ends it, where there is none."""
        timed_out = threading.Event()
        timer = threading.Timer(timeout_s, lambda: (timed_out.set(), self.signal(signal.SIGKILL)))
        self.signal(signal.SIGCONT)
        timer.start()
        line = ""
        try:
            with suppress(BrokenPipeError):
                self.process.stdin.write(json.dumps(message) + "\n")
                self.process.stdin.flush()
                line = self.process.stdout.readline()
        finally:
            timer.cancel()  # the interpreter would wait for it at its end
        self.signal(signal.SIGSTOP)
        if line:
            return json.loads(line)
        tail = self.close()
        reason = f"no answer in {timeout_s:.0f} s" if timed_out.is_set() else f"exit status {self.process.returncode}"
        raise ContestantError(f"{self.name}: {reason} on {json.dumps(message)}\n{tail}")

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def close(self) -> str:
        """Ends it, by the end of its standard input or else by force, with all that it started; returns the last lines
        of its standard error."""
        self.signal(signal.SIGCONT)
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(SECONDS_TO_END)
        self.signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
        with self.stderr:
            self.stderr.seek(0)
            return "".join(f"    {line}" for line in self.stderr.readlines()[-STDERR_TAIL_LINES:])
