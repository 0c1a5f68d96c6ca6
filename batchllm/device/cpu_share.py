"""The share of the machine's CPUs that this process may use, and what it got."""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from batchllm.device.control_groups import group_directories, read

PROCESS = Path("/proc/self")


def default_num_threads(num_cpus: int) -> int:
    """The default number of threads: `num_cpus`, those that it may run on, or fewer if a quota sustains fewer."""
    return max(1, math.ceil(min(num_cpus, cpu_quota())))


def cpu_quota(root: Path = Path("/")) -> float:
    """The CPUs that the narrowest control group of the process allows; infinite if no limit is set.

    Version 2 has "quota period" in cpu.max, version 1 has two files, of microseconds. `root` is the root of the file
    system to read `proc` and `sys` from.
    """
    quota = math.inf
    for directory, is_v2 in group_directories("cpu", root):
        if is_v2:
            words = read(directory / "cpu.max").split()
        else:
            words = [read(directory / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):  # "max" and -1 set none
            quota = min(quota, int(words[0]) / int(words[1]))
    return quota


@dataclass(frozen=True)
class CpuTime:
    """Times of all threads of this process, in seconds."""

    ran_s: float
    waited_s: float  # of its current threads: ready to run while others had the CPUs or a quota was used up

    @classmethod
    def now(cls) -> CpuTime:
        """Waiting is 0 if the kernel does not count it."""
        waited = 0
        with suppress(OSError):
            for thread in os.listdir(PROCESS / "task"):
                with suppress(OSError, ValueError):  # it ended meanwhile
                    waited += int((PROCESS / "task" / thread / "schedstat").read_text().split()[1])
        return cls(time.process_time(), waited / 1e9)

    def since(self, then: CpuTime) -> CpuTime:
        return CpuTime(self.ran_s - then.ran_s, self.waited_s - then.waited_s)
