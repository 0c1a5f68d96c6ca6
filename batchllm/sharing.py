"""What is shared at which depth of a tree of segments."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray


class LevelFigures(msgspec.Struct, frozen=True):
    """The segments at one depth of the tree; depth 1 is the top."""

    depth: int
    segments: int
    median_readers: float
    max_readers: int
    stored_tokens: int
    saved_tokens: int  # prompt tokens not computed, compared with no sharing


def segment_depths(parent: NDArray[np.int32]) -> NDArray[np.int32]:
    """int32 [num_segments], 1 at the top. parent: [num_segments], -1 at the top; parents come first."""
    depth = np.ones(len(parent), np.int32)
    for segment, above in enumerate(parent.tolist()):
        if above >= 0:
            depth[segment] = depth[above] + 1
    return depth


def level_figures(
    depth: NDArray[np.int32], num_tokens: NDArray[np.int64], num_readers: NDArray[np.int32]
) -> list[LevelFigures]:
    """One row per depth, from the top. All arrays are [num_segments]."""
    return [
        LevelFigures(
            depth=level,
            segments=int(here.sum()),
            median_readers=float(np.median(num_readers[here])),
            max_readers=int(num_readers[here].max()),
            stored_tokens=int(num_tokens[here].sum()),
            saved_tokens=int((num_tokens * (num_readers - 1))[here].sum()),
        )
        for level in range(1, int(depth.max(initial=0)) + 1)
        for here in [depth == level]
    ]
