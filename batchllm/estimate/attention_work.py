"""The attention of rows, in layers with a window and in those without: csrc/simulate/attention_work.h for arrays."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", np.int64, np.float64)


def num_attention_pairs(num_rows: NDArray[Number], window_left: int) -> NDArray[Number]:
    """Keys that the rows at positions [0, num_rows) see, each up to itself, for each number of rows.

    window_left: positions before its own that a row sees; -1: all.
    """
    num_hidden = np.maximum(num_rows - 1 - window_left, 0) if window_left >= 0 else 0  # from the last row
    pairs: NDArray[Number] = (num_rows * (num_rows + 1) - num_hidden * (num_hidden + 1)) // 2
    return pairs
