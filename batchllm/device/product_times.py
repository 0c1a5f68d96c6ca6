"""What packing a weight gains on this CPU: measured once for a shape, and kept in a file of the user's."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F

from batchllm.device.packed import packed, packed_linear

# What a measurement multiplies: as many rows as the end of a job, a step of decodes and a step of prefill have, and of
# a large weight a part, which tells as much as all of it.
MEASURED_ROWS = (1, 16, 256)
MEASURED_OUT_FEATURES = 2048
MEASURED_TURNS = 3
MAX_KEPT = 1000  # shapes
# What limits the instructions of the libraries that multiply.
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE")

Gains = dict[int, float]  # by MEASURED_ROWS, seconds as it is by seconds packed


@cache
def gains_of_packing(out_features: int, in_features: int, dtype: torch.dtype, num_threads: int) -> Gains:
    """By a measurement of some tens of milliseconds, or an earlier one of this CPU, torch, shape and number of
    threads."""
    key = f"{_machine()}; {out_features}x{in_features} {dtype}, {num_threads} threads"
    kept = _read_kept()
    if key in kept:
        return {int(rows): gain for rows, gain in kept[key].items()}
    gains = measure_gains(out_features, in_features, dtype)
    with suppress(OSError):
        _keep(kept | {key: {str(rows): gain for rows, gain in gains.items()}})
    return gains


def measure_gains(out_features: int, in_features: int, dtype: torch.dtype) -> Gains:
    weight = torch.ones(min(out_features, MEASURED_OUT_FEATURES), in_features, dtype=dtype)
    weight_packed = packed(weight)
    gains = {}
    for num_rows in MEASURED_ROWS:
        x = torch.ones(num_rows, in_features, dtype=dtype)
        turns = [
            (seconds(partial(F.linear, x, weight)), seconds(partial(packed_linear, x, weight_packed, None)))
            for _ in range(1 + MEASURED_TURNS)
        ][1:]  # the first warms up
        plain_s, packed_s = (min(times) for times in zip(*turns, strict=True))
        gains[num_rows] = plain_s / packed_s
    return gains


def mean_gain(gains: Gains) -> float:
    """Geometric."""
    return math.prod(gains.values()) ** (1 / len(gains))


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "batchllm/products.json"


@cache
def _machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    limits = [f"{limit}={os.environ[limit]}" for limit in LIMITS if limit in os.environ]
    return ", ".join((name, torch.backends.cpu.get_cpu_capability(), f"torch {torch.__version__}", *limits))


def _read_kept() -> dict[str, dict[str, float]]:
    """Nothing where the file is not there, or not as we write it."""
    try:
        kept = json.loads(cache_file().read_text())
        names = [str(rows) for rows in MEASURED_ROWS]
        return {
            str(key): {name: float(gains[name]) for name in names}
            for key, gains in kept.items()
            if all(float(gains[name]) > 0 for name in names)
        }
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}


def _keep(gains: dict[str, dict[str, float]]) -> None:
    """Whole or not at all; the oldest leave."""
    file = cache_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    newest = dict(list(gains.items())[-MAX_KEPT:])
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as new:
        new.write(json.dumps(newest, indent=1))
    os.replace(new.name, file)
