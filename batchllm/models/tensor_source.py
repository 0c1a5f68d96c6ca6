"""The interface of a weight file to its reader."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

ROWS = 32  # rows are requested from a multiple of this on, so no packed word is cut


class TensorSource(Protocol):
    """Tensors by the names that transformers gives them, in whatever form a file has them."""

    files: Mapping[str, Path]
    """The names, and the file that each is read from."""
    config: str
    """The source of the expected tensors and shapes, for messages."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The stored shape. Raises ValueError that names the file and the tensor, like `rows`."""

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows [begin, end), [end - begin, elements of a row], before any rounding: in a float dtype that holds them,
        not to be written to. `begin` is a multiple of ROWS. See `as_rows` for what a row is."""

    def adds_nothing(self, name: str) -> bool:
        """Whether a model without the tensor would be the same."""

    def close(self) -> None:
        """Closes and unmaps all files."""


def as_rows(tensor: Tensor) -> Tensor:
    """[rows, elements of a row], a view of a contiguous tensor: its last dimension is a row. A scalar is one, too."""
    elements = tensor.shape[-1] if tensor.dim() else 1
    return tensor.view(tensor.numel() // max(elements, 1), elements)
