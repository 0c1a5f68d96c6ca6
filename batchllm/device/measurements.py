"""What is measured of this CPU once, and kept in files of the user's."""

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

MAX_KEPT = 1000  # measurements of a file
# What limits the instructions of the libraries that multiply.
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE")

Measurement = dict[str, float]  # by name, above 0 and finite


def measured_once(file: str, what: str, names: Iterable[str], measure: Callable[[], Measurement]) -> Measurement:
    """What `measure` returned for `what`, now or in an earlier process: with this CPU, torch and limits."""
    key = f"{cpu_and_libraries()}; {what}"
    kept = _read_kept(cache_file(file), list(names))
    if key not in kept:
        kept[key] = measure()
        with suppress(OSError):
            _keep(cache_file(file), kept)
    return kept[key]


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def cache_file(name: str) -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / f"batchllm/{name}.json"


@cache
def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


@cache
def cpu_and_libraries() -> str:
    limits = [f"{limit}={os.environ[limit]}" for limit in LIMITS if limit in os.environ]
    return ", ".join((cpu_name(), torch.backends.cpu.get_cpu_capability(), f"torch {torch.__version__}", *limits))


def _read_kept(file: Path, names: list[str]) -> dict[str, Measurement]:
    """Nothing where the file is not there, or not as we write it."""
    try:
        kept = json.loads(file.read_text())
        return {
            str(key): {name: float(values[name]) for name in names}
            for key, values in kept.items()
            if all(0 < float(values[name]) < math.inf for name in names)
        }
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}


def _keep(file: Path, kept: dict[str, Measurement]) -> None:
    """Whole or not at all; the oldest leave."""
    file.parent.mkdir(parents=True, exist_ok=True)
    newest = dict(list(kept.items())[-MAX_KEPT:])
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as new:
        new.write(json.dumps(newest, indent=1))
    os.replace(new.name, file)
