"""The buffers of a wrapper with use_cuda_graph: plan() writes its arrays into them, and their sizes bound a batch.

A CPU captures no graph, so nothing reads them but the program they belong to.
"""

from __future__ import annotations

from torch import Tensor


class GraphBuffers:
    """Those of one level, for a fixed number of requests."""

    def __init__(self, **buffers: Tensor | None) -> None:
        """In the order of new_level's arguments; a decode has none for rows. ValueError for one that is missing, and
        for sizes that disagree."""
        tensors = {}
        for name, buffer in buffers.items():
            if not isinstance(buffer, Tensor):
                raise ValueError(f"{name}: use_cuda_graph expects a tensor, got {type(buffer).__name__}")
            tensors[name] = buffer
        *indptrs, _, last = tensors
        self._batch_size = len(tensors[last])
        for name in indptrs:
            if len(tensors[name]) != self._batch_size + 1:
                raise ValueError(
                    f"{name}: expected {self._batch_size + 1} elements, one more than {last} has, got "
                    f"{len(tensors[name])}"
                )
        self._buffers = list(tensors.values())
        self._most_rows: int | None = None  # those of the first batch

    def check(self, num_rows: int, **arrays: Tensor) -> None:
        """ValueError for a batch of other requests than there are buffers for, of more page ids than they have room
        for, and of more rows than the first."""
        *_, indices, last = arrays
        if len(arrays[last]) != self._batch_size:
            raise ValueError(f"{last}: use_cuda_graph expects {self._batch_size} requests, got {len(arrays[last])}")
        room = len(self._buffers[-2])
        if len(arrays[indices]) > room:
            raise ValueError(
                f"{indices}: expected at most {room} page ids, as the buffer has, got {len(arrays[indices])}"
            )
        if self._most_rows is not None and num_rows > self._most_rows:
            raise ValueError(
                f"plan: use_cuda_graph expects at most {self._most_rows} rows, those of the first plan, got {num_rows}"
            )

    def write(self, num_rows: int, **arrays: Tensor) -> None:
        for buffer, array in zip(self._buffers, arrays.values(), strict=True):
            buffer[: len(array)].copy_(array)
        if self._most_rows is None:
            self._most_rows = num_rows
