"""The counts of a run and the times of its phases."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

from batchllm.device.transfer import Event


@dataclass
class RunFigures:
    """An engine's figures since it was last idle, until it is idle again. Tokens are counted once per completion."""

    num_requests: int = 0
    prompt_tokens: int = 0
    computed_prompt_tokens: int = 0  # including those computed again after preemptions
    recomputed_tokens: int = 0  # prompt and generated
    output_tokens: int = 0
    steps: int = 0
    preemptions: int = 0
    peak_kv_tokens: int = 0  # in the pages in use at the same time
    captures: int = 0  # of CUDA graphs
    num_threads: int = 0  # of the CPU
    cpu_s: float = 0.0  # CPU time of all threads of the process
    cpu_wait_s: float = 0.0  # time that they waited for a CPU that others had
    products: dict[str, str] = field(default_factory=dict)  # by shape and type of a matrix, how it is multiplied
    # By phase. Host: plan, schedule, wait (for the tokens of a device that runs behind it). Device: forward and sample,
    # which overlap with the host's on a GPU.
    seconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _OnHost(AbstractContextManager[None]):
    """Adds the time of the context to the seconds of its phase."""

    def __init__(self, seconds: dict[str, float], phase: str) -> None:
        self._seconds, self._phase = seconds, phase

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._seconds[self._phase] += time.perf_counter() - self._start


class _OnDevice(AbstractContextManager[None]):
    """Records the events of a phase, and queues them unless the context fails."""

    def __init__(self, queued: deque[tuple[str, Event, Event]], phase: str, begin: Event, end: Event) -> None:
        self._queued, self._phase, self._begin, self._end = queued, phase, begin, end

    def __enter__(self) -> None:
        self._begin.record()

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self._end.record()
            self._queued.append((self._phase, self._begin, self._end))


class PhaseClock:
    """Seconds by phase, of the host (`with clock("schedule"): ...`) and of the device (`with clock.on_device("sample"):
    ...`). A device that runs behind the host is timed by its own events, which are read once they have completed, so
    nobody waits for them."""

    def __init__(self, new_event: Callable[[], Event] | None = None) -> None:
        """`new_event` makes an event for timing; None: the device is the host."""
        self._seconds: dict[str, float] = defaultdict(float)
        self._new_event = new_event
        self._queued: deque[tuple[str, Event, Event]] = deque()  # begin and end of phases
        self._free: list[tuple[Event, Event]] = []
        self._start = time.perf_counter()

    def __call__(self, phase: str) -> AbstractContextManager[None]:
        return _OnHost(self._seconds, phase)

    def on_device(self, phase: str) -> AbstractContextManager[None]:
        if self._new_event is None:
            return self(phase)
        if not self._free:
            self._collect()
        begin, end = self._free.pop() if self._free else (self._new_event(), self._new_event())
        return _OnDevice(self._queued, phase, begin, end)

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds so far; for the device, those of completed work."""
        self._collect()
        return dict(self._seconds)

    def _collect(self) -> None:
        while self._queued and self._queued[0][2].query():
            phase, begin, end = self._queued.popleft()
            self._seconds[phase] += begin.elapsed_time(end) / 1e3
            self._free.append((begin, end))

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._start
