"""The requests that an engine holds, and arrays over them: the single place for all data about a request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from batchllm.outputs import Logprob
from batchllm.sampling_params import SamplingParams

FIRST_CAPACITY = 64
NO_SLOT = -1


@dataclass(frozen=True)
class End:
    """Why a request ended by itself, and how that changes its text."""

    reason: int | str | None = None  # the stop token or string; None is the end of sequence
    text: str | None = None  # the whole text; None: what the tokens decode to
    hides_last_token: bool = False  # it is not part of the text
    error: str | None = None  # the tokens cannot be decoded: why


@dataclass(slots=True)
class LiveRequest:
    """One completion that is waiting or running."""

    id: int
    slot: int  # its index in the columns
    prompt_token_ids: np.ndarray  # int32 [prompt length], the same array for all completions of a prompt
    params: SamplingParams
    seed: int  # 64 bits
    max_output_tokens: int
    rules: tuple[int, ...] = ()  # indices of those that know it
    end: End | None = None
    logprobs: list[dict[int, Logprob]] | None = None  # by output token, if they are wanted
    # Of the last prompt tokens, if their log-probabilities are wanted.
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None


class Column:
    """An array over the slots, read and written by slot. It grows with the table, so fetch it again each time."""

    def __init__(self, capacity: int, dtype: Any, fill: Any) -> None:
        self.values = np.full(capacity, fill, dtype)
        self.fill = fill

    def at(self, slots: np.ndarray | list[int]) -> np.ndarray:
        """A copy of the values at these slots."""
        values: np.ndarray = self.values.take(slots)
        return values


@dataclass
class RequestTable:
    """Live requests by id. A slot is an index into every column; it is reused once its request is gone."""

    _requests: list[LiveRequest | None] = field(default_factory=lambda: [None] * FIRST_CAPACITY)  # by slot
    _free: list[int] = field(default_factory=lambda: list(reversed(range(FIRST_CAPACITY))))
    _columns: list[Column] = field(default_factory=list)
    _base: int = 0  # the id of _slot_of[0]; lower ids are gone
    _end: int = 0  # the id after the last one added
    # int64: NumPy indexes several times more slowly by other integers.
    _slot_of: np.ndarray = field(default_factory=lambda: np.full(FIRST_CAPACITY, NO_SLOT, np.int64))

    def column(self, dtype: Any, fill: Any = 0) -> Column:
        """A new array over the slots, filled with `fill`."""
        column = Column(len(self._requests), dtype, fill)
        self._columns.append(column)
        return column

    def __len__(self) -> int:
        return len(self._requests) - len(self._free)

    def __contains__(self, request_id: int) -> bool:
        return self._base <= request_id < self._end and bool(self._slot_of[request_id - self._base] != NO_SLOT)

    def __getitem__(self, request_id: int) -> LiveRequest:
        """Raises KeyError if there is no such live request."""
        if request_id not in self:
            raise KeyError(request_id)
        request = self._requests[int(self._slot_of[request_id - self._base])]
        assert request is not None
        return request

    @property
    def room(self) -> int:
        """The number of slots."""
        return max(len(self._requests), len(self._slot_of))

    @property
    def num_slots(self) -> int:
        return len(self._requests)

    def ids(self) -> list[int]:
        return [request.id for request in self._requests if request is not None]

    def slots(self, request_ids: np.ndarray) -> np.ndarray:
        """int64 [R] of live requests."""
        slots: np.ndarray = self._slot_of.take(request_ids - self._base)
        return slots

    def at(self, slots: np.ndarray) -> list[LiveRequest]:
        """The live requests in these slots, int64 [R]."""
        requests = [self._requests[slot] for slot in slots.tolist()]
        return [request for request in requests if request is not None]

    def live_slots(self, request_ids: np.ndarray) -> np.ndarray:
        """int64, of those of these requests, int32 [R], that are live."""
        places = request_ids - self._base
        slots = self._slot_of.take(places[(places >= 0) & (places < self._end - self._base)])
        live: np.ndarray = slots[slots != NO_SLOT]
        return live

    def add(
        self, request_id: int, prompt_token_ids: np.ndarray, params: SamplingParams, seed: int, max_output_tokens: int
    ) -> LiveRequest:
        """Ids ascend."""
        assert request_id >= self._end
        if not self._free:
            self._grow()
        if len(self) == 0:
            self._base = request_id
        self._make_room_for(request_id)
        slot = self._free.pop()
        request = LiveRequest(request_id, slot, prompt_token_ids, params, seed, max_output_tokens)
        self._requests[slot] = request
        self._slot_of[request_id - self._base] = slot
        self._end = request_id + 1
        return request

    def remove(self, slots: np.ndarray) -> None:
        """Forgets the live requests in these slots, int64 [R]."""
        for column in self._columns:
            column.values[slots] = column.fill
        for request in self.at(slots):
            self._slot_of[request.id - self._base] = NO_SLOT
            self._requests[request.slot] = None
        self._free += slots.tolist()

    def _grow(self) -> None:
        capacity = len(self._requests)
        self._requests += [None] * capacity
        self._free = list(reversed(range(capacity, 2 * capacity)))
        for column in self._columns:
            column.values = np.concatenate([column.values, np.full(capacity, column.fill, column.values.dtype)])

    def _make_room_for(self, request_id: int) -> None:
        """Drops ids of gone requests at the front, in steps of half the capacity, so that moving is rare."""
        room = len(self._slot_of)
        if request_id - self._base < room:
            return
        known = np.flatnonzero(self._slot_of[: self._end - self._base] != NO_SLOT)
        first = int(known[0]) if len(known) else self._end - self._base
        needed = request_id + 1 - self._base - first
        slots = np.full(room if 2 * needed <= room else 2 * needed, NO_SLOT, np.int64)
        slots[: self._end - self._base - first] = self._slot_of[first : self._end - self._base]
        self._slot_of = slots
        self._base += first
