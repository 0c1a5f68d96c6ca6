"""A chat template is a program of whoever published the model: it runs in a process of its own, within bounds.

The process costs what importing transformers does, once. A template that runs on, or crashes, ends it and nothing else.
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

from batchllm.text import printable

TIME_LIMIT_S = 5.0  # of CPU, for one conversation
MEMORY_LIMIT_BYTES = 1 << 30  # beside what the process has before it runs any template
# A conversation's text is little longer than its messages.
OUTPUT_LIMIT_CHARS = 1 << 20
OUTPUT_CHARS_PER_INPUT_CHAR = 8


class MessagesRefused(ValueError):
    """The template's own answer to these messages, which others may not get."""


class ChatTemplateRunner:
    """Renders conversations in a process that the first one starts, as does the next after one that ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(self, **arguments: Any) -> list[str]:
        """transformers' `render_jinja_template` with these arguments, which must be JSON: a text for each of
        `conversations`.

        Raises MessagesRefused; ValueError where a bound is exceeded or nothing can be rendered; TypeError for what is
        no JSON.
        """
        request = json.dumps(arguments).encode() + b"\n"
        with self._lock:
            reply = json.loads(self._answer(request))
        if "refused" in reply:
            raise MessagesRefused(printable(reply["refused"]))
        if "failed" in reply:
            raise ValueError(printable(reply["failed"]))
        return list(reply["texts"])

    def _answer(self, request: bytes) -> bytes:
        process = self._process or self._start()
        self._process = None  # until the reply is whole
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = b""
        except BaseException:
            _end(process)
            raise
        if not reply.endswith(b"\n"):
            raise ValueError(_reason(process.wait()))
        self._process = process
        return reply

    def _start(self) -> subprocess.Popen[bytes]:
        """A process that finds the modules that this one has."""
        program = (
            f"import sys; sys.path[:] = {[*map(str, sys.path)]!r}; from batchllm.chat_template import serve; serve()"
        )
        command = [sys.executable, "-I", "-c", program]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        weakref.finalize(self, _end, process)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _reason(status: int) -> str:
    if status == -signal.SIGPROF:
        return f"the chat template did not end within {TIME_LIMIT_S:g} s"
    return f"the chat template ended its process (status {status})"


def serve() -> None:
    """In the process: answers each line of standard input by one."""
    from transformers.utils.chat_template_utils import render_jinja_template

    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = num_pages * resource.getpagesize() + MEMORY_LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for request in requests:
        signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT_S)  # SIGPROF, which nobody handles, ends the process
        reply = _render(render_jinja_template, request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def _render(render_jinja_template: Callable[..., Any], request: bytes) -> dict[str, Any]:
    """{"texts": one for each conversation}, {"refused": why these messages} or {"failed": why the template}."""
    import jinja2

    try:
        texts, _ = render_jinja_template(**json.loads(request))
    except jinja2.TemplateSyntaxError as error:
        return {"failed": f"the chat template does not compile: line {error.lineno}: {error.message}"}
    except jinja2.TemplateError as error:
        return {"refused": f"the chat template refuses the messages: {error}"}
    except MemoryError:
        return {"failed": f"the chat template needs more than {MEMORY_LIMIT_BYTES >> 20} MiB"}
    except Exception as error:
        return {"refused": f"the chat template fails on the messages: {type(error).__name__}: {error}"}
    most = OUTPUT_LIMIT_CHARS + OUTPUT_CHARS_PER_INPUT_CHAR * len(request)
    if any(len(text) > most for text in texts):
        return {"failed": f"the chat template writes more than {most:,} characters"}
    return {"texts": texts}
