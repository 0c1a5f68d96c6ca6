"""What rules derive from a request's parameters or prompt, and lists of tokens by row as indices into the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from batchllm.device.transfer import to_device
from batchllm.request_table import LiveRequest

T = TypeVar("T")


class Prepared(Generic[T]):
    """The result of `make` for each request's `source`, once for all requests with the very same object: the
    completions of a prompt, or a job with one SamplingParams. Made on first use, so that waiting requests take no
    memory, and kept until the last request that used it is gone."""

    def __init__(self, source: Callable[[LiveRequest], Any], make: Callable[[Any], T]) -> None:
        self._source, self._make = source, make
        self._values: dict[int, tuple[T, set[int]]] = {}  # by id of the source, with the ids of those who asked

    def __call__(self, request: LiveRequest) -> T:
        source = self._source(request)  # lives as long as the request, so its id is nobody else's
        if id(source) not in self._values:
            self._values[id(source)] = (self._make(source), set())
        value, users = self._values[id(source)]
        users.add(request.id)
        return value

    def __len__(self) -> int:
        return len(self._values)

    def forget(self, request: LiveRequest) -> None:
        key = id(self._source(request))
        if key in self._values:
            users = self._values[key][1]
            users.discard(request.id)
            if not users:
                del self._values[key]


def places(token_ids: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Of token_ids[i] in row i of some logits: (rows, columns), int64 [total], on the device."""
    rows = np.repeat(np.arange(len(token_ids)), [len(ids) for ids in token_ids])
    columns = np.concatenate([np.empty(0, np.int64), *token_ids], dtype=np.int64)
    on_device = to_device([rows, columns], device)
    return on_device[0], on_device[1]
