"""Records figures of an engine's steps, in memory that does not grow with their number."""

from __future__ import annotations

import time

import msgspec
import numpy as np
from numpy.typing import NDArray

import batchllm_ext as ext
from batchllm.outputs import JobProgress
from batchllm.sharing import LevelFigures, level_figures, segment_depths

MAX_POINTS = 2000
MAX_GROUPS = 20
MAX_LEVELS = 32


class TimelineFigures(msgspec.Struct, frozen=True):
    """Runs of consecutive steps; lists of one length."""

    steps: list[int]
    seconds: list[float]
    decode_tokens: list[int]
    prefill_tokens: list[int]
    kv_tokens: list[int]  # in the pages that were in use after a step, at most


class GroupFigures(msgspec.Struct, frozen=True):
    """The requests under one shared segment."""

    request: int  # one of them, counted from the first that was added
    requests: int
    prefix_tokens: int  # from the beginning of the prompt to the segment's end
    seconds: float  # of the steps, each divided among its rows


class Timeline:
    """At most MAX_POINTS runs of steps, all of one length except the last. When there would be more, pairs are
    joined."""

    def __init__(self) -> None:
        self.steps_per_point = 1
        self._num_points = 0
        self._sums = np.zeros((MAX_POINTS, 4))  # steps, seconds, decode tokens, prefill tokens
        self._peaks = np.zeros(MAX_POINTS, np.int64)  # KV tokens

    def add(self, seconds: float, decode_tokens: int, prefill_tokens: int, kv_tokens: int) -> None:
        if self._num_points == 0 or self._sums[self._num_points - 1, 0] == self.steps_per_point:
            if self._num_points == MAX_POINTS:
                self._halve()
            self._num_points += 1
        last = self._num_points - 1
        self._sums[last] += (1, seconds, decode_tokens, prefill_tokens)
        self._peaks[last] = max(self._peaks[last], kv_tokens)

    def _halve(self) -> None:
        half = MAX_POINTS // 2
        self._sums[:half], self._sums[half:] = self._sums.reshape(half, 2, -1).sum(axis=1), 0
        self._peaks[:half], self._peaks[half:] = self._peaks.reshape(half, 2).max(axis=1), 0
        self._num_points, self.steps_per_point = half, 2 * self.steps_per_point

    @property
    def figures(self) -> TimelineFigures:
        steps, seconds, decode_tokens, prefill_tokens = self._sums[: self._num_points].T
        return TimelineFigures(
            steps=steps.astype(int).tolist(),
            seconds=np.round(seconds, 6).tolist(),
            decode_tokens=decode_tokens.astype(int).tolist(),
            prefill_tokens=prefill_tokens.astype(int).tolist(),
            kv_tokens=self._peaks[: self._num_points].tolist(),
        )


class RunRecorder:
    """Records the requests that are added while it is an engine's `recorder`."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.progress: JobProgress | None = None  # after the last step; None before the first
        self._first_id: int | None = None
        self._segment_of = np.zeros(0, np.int32)  # [num_requests] the deepest; -1 for none
        self._parent = np.zeros(0, np.int32)  # [num_segments], as are those below
        self._owner = np.zeros(0, np.int32)
        self._token_begin = np.zeros(0, np.int64)
        self._token_end = np.zeros(0, np.int64)
        self._num_readers = np.zeros(0, np.int32)
        self._seconds = np.zeros(1)  # [num_segments + 1]; the last is of requests that share nothing
        self._unfinished_s = 0.0  # of the prefill of a request that has no token yet
        self._time = 0.0

    def added(self, first_id: int, segments: ext.Segments) -> None:
        """segments: of the requests first_id, first_id + 1, ..."""
        if self._first_id is None:
            self._first_id, self._time = first_id, time.perf_counter()
        num_segments, num_requests = len(self._parent), len(self._segment_of)

        def numbered(ids: NDArray[np.int32], begin: int) -> NDArray[np.int32]:
            return np.where(ids < 0, ids, ids + begin).astype(np.int32)

        self._segment_of = np.append(self._segment_of, numbered(segments.request_segment, num_segments))
        self._parent = np.append(self._parent, numbered(segments.parent, num_segments))
        self._owner = np.append(self._owner, numbered(segments.owner_request, num_requests))
        self._token_begin = np.append(self._token_begin, segments.token_begin)
        self._token_end = np.append(self._token_end, segments.token_end)
        self._num_readers = np.append(self._num_readers, segments.num_readers)
        self._seconds = np.insert(self._seconds, num_segments, np.zeros(segments.num_segments))

    def stepped(self, batch: ext.TokenBatch, progress: JobProgress) -> None:
        """A batch was computed and committed in the time since the last one."""
        self.progress = progress
        if self._first_id is None:
            return
        now = time.perf_counter()
        seconds, self._time = now - self._time, now
        num_decodes = batch.num_decode_tokens
        self.timeline.add(seconds, num_decodes, batch.num_prefill_tokens, progress.kv_tokens)
        # Requests are prefilled one after the other: the rows up to one with logits belong to one request.
        per_row_s = seconds / batch.num_tokens
        bounds = np.concatenate([[-1], batch.logit_rows])
        spent_s = np.diff(bounds) * per_row_s
        if len(spent_s) > num_decodes:
            spent_s[num_decodes] += self._unfinished_s
            self._unfinished_s = 0.0
        self._unfinished_s += (batch.num_tokens - 1 - int(bounds[-1])) * per_row_s
        places = batch.logit_request_ids - self._first_id
        ours = places >= 0
        np.add.at(self._seconds, self._segment_of[places[ours]], spent_s[ours])

    @property
    def levels(self) -> list[LevelFigures]:
        """For depths 1 to MAX_LEVELS; the last includes everything deeper."""
        depth = np.minimum(segment_depths(self._parent), MAX_LEVELS)
        return level_figures(depth, self._token_end - self._token_begin, self._num_readers)

    @property
    def groups(self) -> list[GroupFigures]:
        """At most MAX_GROUPS groups, slowest first, at the first depth with more than one segment."""
        depth = segment_depths(self._parent)
        counts = np.bincount(depth, minlength=2)
        level = next((d for d in range(1, len(counts)) if counts[d] > 1), 1)
        group_of = np.full(len(depth), -1)
        for segment, above in enumerate(self._parent.tolist()):
            if depth[segment] >= level:
                group_of[segment] = segment if depth[segment] == level else group_of[above]
        seconds = np.zeros(len(depth) + 1)
        np.add.at(seconds, group_of, self._seconds[:-1])
        slowest = np.argsort(-seconds[:-1], kind="stable")[:MAX_GROUPS]
        return [
            GroupFigures(
                request=int(self._owner[segment]),
                requests=int(self._num_readers[segment]),
                prefix_tokens=int(self._token_end[segment]),
                seconds=round(float(seconds[segment]), 6),
            )
            for segment in slowest[depth[slowest] == level].tolist()
        ]
