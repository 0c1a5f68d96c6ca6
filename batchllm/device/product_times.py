"""What packing a weight gains on this CPU, measured once per shape."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from batchllm.device.measurements import Turns, keep, kept
from batchllm.device.packed import packed, packed_linear

# What a measurement multiplies: as many rows as the end of a job, a step of decodes and a step of prefill have, and
# only part of a large weight, which is just as telling.
MEASURED_ROWS = (1, 16, 256)
MEASURED_OUT_FEATURES = 2048
ROWS_PER_TURN = 64  # at least, so that a turn takes much longer than waking a thread
QUIET_TURNS, LIMIT_S = 3, 0.05  # per number of rows
FILE = "products"

Gains = dict[int, float]  # by MEASURED_ROWS: seconds with the plain weight over seconds with the packed one


@cache
def gains_of_packing(out_features: int, in_features: int, dtype: torch.dtype, num_threads: int) -> Gains:
    """From a measurement of some tens of milliseconds, or an earlier quiet one of this CPU, torch, shape and number of
    threads, which are torch's."""
    what = f"{out_features}x{in_features} {dtype}, {num_threads} threads"
    if earlier := kept(FILE, what, map(str, MEASURED_ROWS)):
        return {int(rows): gain for rows, gain in earlier.items()}
    gains, was_quiet = measure_gains(out_features, in_features, dtype)
    if was_quiet:
        keep(FILE, what, {str(rows): gain for rows, gain in gains.items()})
    return gains


def measure_gains(out_features: int, in_features: int, dtype: torch.dtype) -> tuple[Gains, bool]:
    """The gains, and whether no other program disturbed them. Otherwise they are one thread's, in CPU time: others can
    hardly change that, but several threads would spend it on waiting for each other."""
    turns, gains = Turns(QUIET_TURNS, LIMIT_S), {}
    for num_rows, ways in _ways(out_features, in_features, dtype):
        plain_s, packed_s = turns.best_of_each_s(*ways)
        gains[num_rows] = plain_s / packed_s
    if turns.were_quiet:
        return gains, True
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for num_rows, ways in _ways(out_features, in_features, dtype):
            plain_s, packed_s = (min(cpu_seconds(way) for _ in range(QUIET_TURNS)) for way in ways)
            gains[num_rows] = plain_s / packed_s
    finally:
        torch.set_num_threads(num_threads)
    return gains, False


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU time of this thread."""
    begin = time.thread_time()
    run()
    return time.thread_time() - begin


def mean_gain(gains: Gains) -> float:
    """Geometric."""
    return math.prod(gains.values()) ** (1 / len(gains))


def _ways(
    out_features: int, in_features: int, dtype: torch.dtype
) -> Iterator[tuple[int, tuple[Callable[[], None], Callable[[], None]]]]:
    """By number of rows the two products, with the plain and with the packed weight, warmed up."""
    weight = torch.ones(min(out_features, MEASURED_OUT_FEATURES), in_features, dtype=dtype)
    weight_packed = packed(weight)

    def repeat(product: Callable[[], Tensor], times: int) -> None:
        for _ in range(times):
            product()

    for num_rows in MEASURED_ROWS:
        x = torch.ones(num_rows, in_features, dtype=dtype)
        products = partial(F.linear, x, weight), partial(packed_linear, x, weight_packed, None)
        for product in products:
            product()
        times = max(1, ROWS_PER_TURN // num_rows)
        plain, with_packed = (partial(repeat, product, times) for product in products)
        yield num_rows, (plain, with_packed)
