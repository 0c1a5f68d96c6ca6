"""Work that a stranger's input could make endless runs in a process of its own, within bounds.

The process answers JSON lines. One that runs on, or crashes, ends itself and nothing else; the next question starts a
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
    """A process that the first question starts, as does the next after one that ended it.

    serve: "module:function", called in the process, which calls `answer_lines`.
    subject: what its errors speak of.
    time_limit_s: of CPU, for one answer.
    opening: a question that every new process gets first; its answer is nobody's.
    """

    def __init__(self, serve: str, subject: str, time_limit_s: float, opening: dict[str, Any] | None = None) -> None:
        self._serve, self._subject, self._time_limit_s = serve, subject, time_limit_s
        self._opening = opening
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """None before the first question, and after one that ended it."""
        return None if self._process is None else self._process.pid

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """What the process answers. Raises ValueError where it ended instead; TypeError for what is no JSON."""
        lines = [json.dumps(question).encode() + b"\n"]
        with self._lock:
            if self._process is None and self._opening is not None:
                lines.insert(0, json.dumps(self._opening).encode() + b"\n")
            for line in lines:
                answer: dict[str, Any] = json.loads(self._answer(line))
        return answer

    def _answer(self, line: bytes) -> bytes:
        process = self._process or self._start()
        self._process = None  # until the answer is whole
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
        """A process that finds the modules that this one has."""
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
    """In the process: answers each line of standard input by one.

    memory_limit_bytes: beside what the process has by now; `answer` meets a MemoryError there.
    """
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = num_pages * resource.getpagesize() + memory_limit_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for question in questions:
        signal.setitimer(signal.ITIMER_PROF, time_limit_s)  # SIGPROF, which nobody handles, ends the process
        reply = answer(json.loads(question))
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(reply).encode() + b"\n")
        answers.flush()
