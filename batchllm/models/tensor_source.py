"""The interface of a weight file to its reader."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor


class TensorSource(Protocol):
    """Tensors by the names that transformers gives them, in whatever form a file has them."""

    files: Mapping[str, Path]
    """The names, and the file that each is read from."""
    config: str
    """The source of the expected tensors and shapes, for messages."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The stored shape. Raises ValueError that names the file and the tensor, like `read`."""

    def read(self, name: str, into: Tensor) -> None:
        """Fills `into`, of that shape and any float dtype, on any device; each element is rounded once."""

    def adds_nothing(self, name: str) -> bool:
        """Whether a model without the tensor would be the same."""

    def close(self) -> None:
        """Closes and unmaps all files."""
