"""What part of the machine's CPUs this process may have, and what it got."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROCESS = Path("/proc/self")
GROUPS = Path("/sys/fs/cgroup")


def default_num_threads(num_cpus: int) -> int:
    """Threads that a process takes unasked: `num_cpus`, those that it may run on, or fewer where a quota allows fewer
    to run all the time."""
    return max(1, math.ceil(min(num_cpus, cpu_quota())))


def cpu_quota(process: Path = PROCESS, groups: Path = GROUPS) -> float:
    """CPUs that the control groups of the process let it have, the narrowest of them; infinite where none is set.

    Version 2 has "quota period" in cpu.max, version 1 has two files, of microseconds.
    """
    quota = math.inf
    for directory in _group_directories(process, groups):
        with suppress(OSError, ValueError, ZeroDivisionError):
            if (directory / "cpu.max").exists():
                allowed, period = (directory / "cpu.max").read_text().split()
            else:
                allowed, period = ((directory / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if allowed != "max" and int(allowed) > 0:
                quota = min(quota, int(allowed) / int(period))
    return quota


def _group_directories(process: Path, groups: Path) -> Iterator[Path]:
    """Of the group that rules CPU time and of those above it. In a container the names may be those of its host, and
    only the top is to be seen."""
    try:
        lines = (process / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = groups / controllers if controllers else groups
        directory = top / path.lstrip("/")
        yield from (parent for parent in (directory, *directory.parents) if top in (parent, *parent.parents))


@dataclass(frozen=True)
class CpuTime:
    """Of all threads that this process has now, in seconds."""

    ran_s: float
    waited_s: float  # ready to run, while others had the CPUs, or a quota was used up

    @classmethod
    def now(cls) -> CpuTime:
        """0 where the kernel does not count."""
        ran = waited = 0
        with suppress(OSError):
            for thread in os.listdir(PROCESS / "task"):
                with suppress(OSError, ValueError):  # it ended meanwhile
                    times = (PROCESS / "task" / thread / "schedstat").read_text().split()
                    ran, waited = ran + int(times[0]), waited + int(times[1])
        return cls(ran / 1e9, waited / 1e9)

    def since(self, then: CpuTime) -> CpuTime:
        return CpuTime(self.ran_s - then.ran_s, self.waited_s - then.waited_s)
