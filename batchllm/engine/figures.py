"""What a run counted and how long its phases took."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class RunFigures:
    """Of an engine since it last stood still: all that was added until it does again. Tokens are counted once per
    completion."""

    num_requests: int = 0
    prompt_tokens: int = 0
    computed_prompt_tokens: int = 0  # what preemptions made to be computed again included
    recomputed_tokens: int = 0  # prompt and generated
    output_tokens: int = 0
    steps: int = 0
    preemptions: int = 0
    peak_kv_tokens: int = 0  # in the pages that were in use at a time
    seconds: dict[str, float] = field(default_factory=dict)  # by phase: plan, schedule, forward, sample, ...

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class PhaseClock:
    """Seconds by phase: `with clock("forward"): ...`"""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._start
