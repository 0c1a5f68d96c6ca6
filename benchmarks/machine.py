"""What /proc tells of this machine: CPU time, processes and their memory. Standard library only."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
QUIET_SHARE = 0.1  # of all CPUs: while others take less, times count
SECONDS_TO_LISTEN = 0.5
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    cpu_s: float  # its own, and that of children that ended and were waited for


def busy_s() -> float:
    """CPU seconds that all processes together have had since the machine started, and that its host took from it."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, (PROC / "stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


def processes() -> Iterator[Process]:
    for directory in PROC.iterdir():
        if directory.name.isdigit():
            with suppress(OSError):  # it ended meanwhile
                # The name, in parentheses, may hold anything; behind it: state, parent, ...
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
                yield Process(int(directory.name), int(fields[1]), sum(map(int, fields[11:15])) / TICKS_PER_S)


def process_tree(root: int) -> list[Process]:
    """The process `root` and all that descends from it, parents first."""
    children: dict[int, list[Process]] = {}
    tree = []
    for process in processes():
        children.setdefault(process.parent, []).append(process)
        if process.pid == root:
            tree.append(process)
    for process in tree:
        tree += children.get(process.pid, [])
    return tree


def forget_peak_rss(tree: list[Process]) -> None:
    """Starts the peaks that `peak_rss_bytes` reads anew."""
    for process in tree:
        with suppress(OSError):
            (PROC / str(process.pid) / "clear_refs").write_text("5")


def peak_rss_bytes(tree: list[Process]) -> int:
    """The peaks of all processes, added; of pages of files, mostly the same libraries, only those of the largest."""
    private, shared = 0, 0
    for process in tree:
        with suppress(OSError, KeyError):  # it ended meanwhile: it is gone, or has no memory any more
            status = dict(line.split(":", 1) for line in (PROC / str(process.pid) / "status").read_text().splitlines())
            peak, file = (int(status[name].split()[0]) * 1024 for name in ("VmHWM", "RssFile"))
            private += peak - file
            shared = max(shared, file)
    return private + shared


def describe() -> str:
    """The machine in a few words: its processor, with family and model, which tell generations apart, and its size."""
    lines = (line.partition(":") for line in (PROC / "cpuinfo").read_text().splitlines())
    cpu = {name.strip(): value.strip() for name, _, value in lines}
    generation = f"family {cpu.get('cpu family', '?')}, model {cpu.get('model', '?')}"
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu.get('model name', 'unknown CPU')} ({generation}), {os.cpu_count()} cores, {memory_gib:.0f} GiB"


def wait_until_quiet(limit_s: float) -> None:
    """Returns when others leave this machine alone, or when the limit has passed."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        with Meter() as meter:
            time.sleep(SECONDS_TO_LISTEN)
        if meter.foreign_share < QUIET_SHARE:
            return


class Meter:
    """What a stretch of time cost: `with Meter() as meter: ...`, then wall_s, cpu_s and peak_rss_bytes of this process
    and its children, and foreign_share: the part of all CPUs that everybody else had, the machine's host included."""

    wall_s: float
    cpu_s: float
    foreign_share: float
    peak_rss_bytes: int

    def __enter__(self) -> Meter:
        tree = process_tree(os.getpid())
        forget_peak_rss(tree)
        self._own_s, self._busy_s = sum(process.cpu_s for process in tree), busy_s()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s = time.perf_counter() - self._start
        tree = process_tree(os.getpid())
        self.cpu_s = sum(process.cpu_s for process in tree) - self._own_s
        foreign_s = busy_s() - self._busy_s - self.cpu_s
        self.foreign_share = max(foreign_s, 0.0) / (self.wall_s * (os.cpu_count() or 1))
        self.peak_rss_bytes = peak_rss_bytes(tree)
