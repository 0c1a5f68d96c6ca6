"""Measurements of this CPU, kept in the user's cache files."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from batchllm.device.cpu_share import CpuTime

WAITED_SHARE = 0.02  # of a turn's time, below which no thread waited for a CPU that others had
MAX_KEPT = 1000  # measurements of a file
# Settings that limit the instructions of the multiplying libraries.
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE")

Measurement = dict[str, float]  # by name, above 0 and finite


def kept(file: str, what: str, names: Iterable[str]) -> Measurement | None:
    """An earlier process's measurement of `what`, with this CPU, torch and limits."""
    return _read_kept(cache_file(file), list(names)).get(_key(what))


def keep(file: str, what: str, measurement: Measurement) -> None:
    """Stores it for later processes, if the file can be written: whole or not at all. The oldest entries are
    dropped."""
    path = cache_file(file)
    newest = _read_kept(path, list(measurement)) | {_key(what): measurement}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as new:
            new.write(json.dumps(dict(list(newest.items())[-MAX_KEPT:]), indent=1))
        os.replace(new.name, path)


class Turns:
    """Times, each the fastest of several turns, of which a number are to be quiet: no thread waits for a CPU that
    others have."""

    def __init__(self, num_quiet: int, limit_s: float) -> None:
        """num_quiet: turns, or as many as `limit_s` seconds allow, but at least one."""
        self.num_quiet, self.limit_s = num_quiet, limit_s
        self.were_quiet = True  # each time had at least one quiet turn

    def best_s(self, run: Callable[[], object], before: Callable[[], None] = lambda: None) -> float:
        """`before` runs before each turn and is not timed."""
        return self.best_of_each_s(run, before=before)[0]

    def best_of_each_s(self, *runs: Callable[[], object], before: Callable[[], None] = lambda: None) -> list[float]:
        """Of functions that run one after the other in each turn."""
        times: list[list[float]] = []
        num_quiet, deadline = 0, time.perf_counter() + self.limit_s
        while not times or (num_quiet < self.num_quiet and time.perf_counter() < deadline):
            before()
            begin = CpuTime.now()
            times.append([seconds(run) for run in runs])
            num_quiet += CpuTime.now().since(begin).waited_s < WAITED_SHARE * sum(times[-1])
        self.were_quiet = self.were_quiet and num_quiet > 0
        return [min(of_one) for of_one in zip(*times, strict=True)]


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def cache_file(name: str) -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / f"batchllm/{name}.json"


@cache
def cpu_name() -> str:
    """Includes family and model, which distinguish CPUs that vendors name alike."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        cpuinfo = ""
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in cpuinfo.splitlines())}
    generation = f"family {fields.get('cpu family', '?')}, model {fields.get('model', '?')}"
    return f"{fields.get('model name', 'unknown CPU')} ({generation})"


def _key(what: str) -> str:
    limits = [f"{limit}={os.environ[limit]}" for limit in LIMITS if limit in os.environ]
    libraries = (torch.backends.cpu.get_cpu_capability(), f"torch {torch.__version__}", *limits)
    return f"{', '.join((cpu_name(), *libraries))}; {what}"


def _read_kept(file: Path, names: list[str]) -> dict[str, Measurement]:
    """Empty if the file is missing or not in our format."""
    try:
        kept = json.loads(file.read_text())
        return {
            str(key): {name: float(values[name]) for name in names}
            for key, values in kept.items()
            if all(0 < float(values[name]) < math.inf for name in names)
        }
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}
