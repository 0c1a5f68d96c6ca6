"""What packing a weight gains on this CPU, measured once per shape."""

from __future__ import annotations

import math
from functools import cache, partial

import torch
import torch.nn.functional as F

from batchllm.device.measurements import keep, kept, seconds
from batchllm.device.packed import packed, packed_linear

# What a measurement multiplies: as many rows as the end of a job, a step of decodes and a step of prefill have, and
# only part of a large weight, which is just as telling.
MEASURED_ROWS = (1, 16, 256)
MEASURED_OUT_FEATURES = 2048
MEASURED_TURNS = 3
FILE = "products"

Gains = dict[int, float]  # by MEASURED_ROWS: seconds with the plain weight over seconds with the packed one


@cache
def gains_of_packing(out_features: int, in_features: int, dtype: torch.dtype, num_threads: int) -> Gains:
    """From a measurement of some tens of milliseconds, or an earlier one of this CPU, torch, shape and number of
    threads."""
    what = f"{out_features}x{in_features} {dtype}, {num_threads} threads"
    gains = kept(FILE, what, map(str, MEASURED_ROWS))
    if gains is None:
        gains = {str(rows): gain for rows, gain in measure_gains(out_features, in_features, dtype).items()}
        keep(FILE, what, gains)
    return {int(rows): gain for rows, gain in gains.items()}


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
