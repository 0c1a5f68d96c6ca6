"""Asynchronous copies between host and device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Event(Protocol):
    """The part of torch.cuda.Event that copies and clocks need. It completes once all work queued before `record` is
    done; an event that was never recorded counts as complete."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        """Whether it has completed."""

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds until another event; both were made for timing and have completed."""


TORCH_TYPES = {np.dtype(name): getattr(torch, name) for name in ("int32", "int64", "float32", "float64")}


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """The arrays, which have TORCH_TYPES, on the device, by one copy that the host does not wait for. Those with larger
    elements come first, for alignment, since each is a view into the copy."""
    sizes = [array.nbytes for array in arrays]
    host = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    written, begin = host.numpy(), 0
    for array in arrays:
        written[begin : begin + array.nbytes] = array.view(np.uint8)
        begin += array.nbytes
    parts = host.to(device, non_blocking=True).split_with_sizes(sizes)
    return [part.view(TORCH_TYPES[array.dtype]) for part, array in zip(parts, arrays, strict=True)]


def upload(host: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device, by a copy that the host does not wait for."""
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


def to_host(*tensors: Tensor) -> list[Tensor]:
    """Tensors that hold their values once an event recorded from now on has completed."""
    return [tensor.to("cpu", non_blocking=True) for tensor in tensors]


class UploadRing:
    """Two pinned buffers that take turns: the host writes one while the copy out of the other may still run."""

    def __init__(self, new_buffer: Callable[[int], Tensor], new_event: Callable[[], Event]) -> None:
        """`new_buffer` makes a pinned int32 tensor of a given number of elements."""
        self._new_buffer = new_buffer
        self._buffers = [new_buffer(0), new_buffer(0)]
        self._copied = [new_event(), new_event()]
        self._next = 0

    def upload(self, write: Callable[[np.ndarray], None], to: Tensor) -> None:
        """Lets `write` fill a buffer of the size of `to`, int32 on the device, and starts the copy."""
        turn, self._next = self._next, 1 - self._next
        self._copied[turn].synchronize()
        num_ints = to.numel()
        if self._buffers[turn].numel() < num_ints:
            self._buffers[turn] = self._new_buffer(2 * num_ints)
        host = self._buffers[turn][:num_ints]
        write(host.numpy())
        to.copy_(host, non_blocking=True)
        self._copied[turn].record()


class DownloadRing:
    """Two pinned buffers that take turns: the result of one copy is read while the next may run."""

    def __init__(
        self,
        new_buffer: Callable[[int], Tensor],
        new_event: Callable[[], Event],
        copy: Callable[[Tensor, Tensor], None],
    ) -> None:
        """`copy(values, host)` queues a copy into pinned memory."""
        self._new_buffer, self._copy = new_buffer, copy
        self._buffers = [new_buffer(0), new_buffer(0)]
        self._copied = [new_event(), new_event()]
        self._next = 0

    def download(self, values: Tensor) -> Callable[[], np.ndarray]:
        """Starts the copy of an int32 tensor [n] on the device. Returns a function that waits for it and returns it;
        call it before the next but one download."""
        turn, self._next = self._next, 1 - self._next
        num_ints = values.numel()
        if self._buffers[turn].numel() < num_ints:
            self._buffers[turn] = self._new_buffer(2 * num_ints)
        host = self._buffers[turn][:num_ints]
        self._copy(values, host)
        copied = self._copied[turn]
        copied.record()

        def read() -> np.ndarray:
            copied.synchronize()
            result: np.ndarray = host.numpy().copy()
            return result

        return read
