"""What a file of weights is to who reads it."""

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
    """What says which tensors there should be, and of which shapes."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises ValueError that names the file and the tensor, as `read` does."""

    def read(self, name: str, into: Tensor) -> None:
        """Fills `into`, of that shape and any float dtype, on any device; each element is rounded once."""

    def adds_nothing(self, name: str) -> bool:
        """Whether a model without the tensor is the same one."""

    def close(self) -> None:
        """Nothing of the files stays mapped or open."""
