"""Runs work that untrusted input could make endless, in a separate process with limits.

The process answers JSON lines. If it runs too long or crashes, only that process ends, and the next question starts a
new one.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any


class BoundedProcess:
    """A process that the first question starts. A question that ends it is followed by a new process.

    serve: "module:function", called in the process, which calls `answer_lines`.
    subject: named in its errors.
    time_limit_s: CPU time for one answer.
    opening: a question that every new process gets first; its answer is dropped.
    """

    def __init__(self, serve: str, subject: str, time_limit_s: float, opening: dict[str, Any] | None = None) -> None:
        self._serve, self._subject, self._time_limit_s = serve, subject, time_limit_s
        self._opening = opening
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """None before the first question, and after a question that ended the process."""
        return None if self._process is None else self._process.pid

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer of the process. Raises ValueError if it ended instead; TypeError for a question that is not
        JSON."""
        lines = [json.dumps(question).encode() + b"\n"]
        with self._lock:
            if self._process is None and self._opening is not None:
                lines.insert(0, json.dumps(self._opening).encode() + b"\n")
            for line in lines:
                answer: dict[str, Any] = json.loads(self._answer(line))
        return answer

    def _answer(self, line: bytes) -> bytes:
        process = self._process or self._start()
        self._process = None  # until the answer is complete
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        except BaseException:
            _end(process)
            raise
        if not answer.endswith(b"\n"):
            raise ValueError(self._reason(process.wait()))
        self._process = process
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        """Starts a process with this one's module path."""
        module, _, function = self._serve.partition(":")
        program = f"import sys; sys.path[:] = {[*map(str, sys.path)]!r}; from {module} import {function}; {function}()"
        command = [sys.executable, "-I", "-c", program]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        weakref.finalize(self, _end, process)
        return process

    def _reason(self, status: int) -> str:
        if status == -signal.SIGPROF:
            return f"{self._subject} did not end within {self._time_limit_s:g} s"
        return f"{self._subject} ended its process (status {status})"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def answer_lines(
    answer: Callable[[dict[str, Any]], dict[str, Any]], *, time_limit_s: float, memory_limit_bytes: int
) -> None:
    """In the process: answers each line of standard input with one line.

    memory_limit_bytes: beyond the process's current use; past it, `answer` gets a MemoryError.
    """
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = num_pages * resource.getpagesize() + memory_limit_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for question in questions:
        signal.setitimer(signal.ITIMER_PROF, time_limit_s)  # SIGPROF, which is not handled, ends the process
        reply = answer(json.loads(question))
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(reply).encode() + b"\n")
        answers.flush()
