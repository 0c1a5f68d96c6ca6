"""A step between its launch and the reading of its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import batchllm_ext as ext
from batchllm.engine.runner import Drawn
from batchllm.sampling.rules import Rows


@dataclass
class StepInFlight:
    """A step whose tokens have not been read yet."""

    number: int  # among the steps since the engine was idle, from 1
    batch: ext.TokenBatch
    rows: Rows  # those that get a token
    drawn: Drawn
    told: list[Callable[[], None]]  # once drawn() has returned, give requests the log-probabilities they ask for
    is_awaited: bool  # whether its tokens must be known before the next ones are drawn
    is_gone: np.ndarray | None = None  # bool [R]: the row's request has ended since; None: none has

    def forget(self, slots: np.ndarray) -> None:
        """Marks the rows of ended requests, int64 slots: their tokens are dropped."""
        has_ended = np.zeros(self.rows.requests.num_slots, bool)
        has_ended[slots] = True
        is_gone = has_ended[self.rows.slots]
        self.is_gone = is_gone if self.is_gone is None else self.is_gone | is_gone

    def num_ending(self) -> int:
        """Requests that end by length with this step and had not ended before."""
        kept = self.rows if self.is_gone is None else self.rows.take(~self.is_gone)
        bounds = np.array([kept[row].max_output_tokens for row in range(len(kept))], np.int32)
        return int((kept.num_output_tokens + 1 == bounds).sum())
