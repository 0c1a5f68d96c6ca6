"""Reads the weights of a model, some rows of a tensor at a time, checked by name and shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from math import lcm, prod
from pathlib import Path
from types import TracebackType

import torch

from batchllm.models.config import CONFIG, read_config
from batchllm.models.fields import naming
from batchllm.models.gguf_file import is_gguf
from batchllm.models.gguf_tensors import GgufTensors
from batchllm.models.quantization import read_quantization
from batchllm.models.quantized_tensors import QuantizedTensors
from batchllm.models.safetensors_files import SafetensorsFiles
from batchllm.models.tensor_source import ROWS, TensorSource, as_rows
from batchllm.text import printable

READ_AT_ONCE = 1 << 18  # elements: few enough for a cache, and for what an allocator keeps of them


class WeightReader:
    """The tensors of a model directory or a GGUF file, by the names that transformers gives them.

    `take` copies a tensor out of its file, so no file stays mapped or open after the context. `finish` raises if the
    checkpoint holds tensors that were not taken: otherwise a bias that the config does not announce would be dropped
    silently.
    """

    def __init__(self, path: Path, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.path = path
        self.dtype = dtype
        self.device = device
        self._source = open_tensors(path)
        self._left = set(self._source.files)

    def __contains__(self, name: str) -> bool:
        return name in self._source.files

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """Tensor `name`, [*shape], in `self.dtype` on `self.device`; without a shape a scalar."""
        self._check(name, shape)
        tensor = torch.empty(shape, dtype=self.dtype, device=self.device)
        self._read(name, tensor)
        return tensor

    def blocks(self, name: str, *shape: int, whole: int = 1) -> Iterator[torch.Tensor]:
        """The same tensor, with at least two dimensions, as blocks of its rows (the last dimension is a row), each of
        about READ_AT_ONCE elements and of a multiple of `whole` rows. They may be mapped from a file: not to be written
        to, nor kept."""
        self._check(name, shape)
        for begin, end in parts(prod(shape[:-1]), shape[-1], whole):
            yield self._source.rows(name, begin, end).to(self.device, self.dtype)
        self._left.discard(name)

    def take_stacked(self, num_rows: Mapping[str, int], *row: int) -> torch.Tensor:
        """The tensors with these names, [num_rows[name], *row] each, concatenated; none is in memory twice."""
        for name, count in num_rows.items():
            self._check(name, (count, *row))
        stacked = torch.empty((sum(num_rows.values()), *row), dtype=self.dtype, device=self.device)
        for name, part in zip(num_rows, stacked.split(list(num_rows.values())), strict=True):
            self._read(name, part)
        return stacked

    def _read(self, name: str, into: torch.Tensor) -> None:
        rows = as_rows(into)
        for begin, end in parts(*rows.shape):
            rows[begin:end].copy_(self._source.rows(name, begin, end))
        self._left.discard(name)

    def drop_copy(self, name: str, *shape: int, of: str) -> None:
        """Drops tensor `name`, if it is stored at all, as a copy of tensor `of`, of the same shape. Raises ValueError
        if they differ."""
        if name not in self:
            return
        pairs = zip(self.blocks(name, *shape), self.blocks(of, *shape), strict=True)
        if not all(torch.equal(rows, others) for rows, others in pairs):
            raise ValueError(
                f"{self._source.files[name]}: tensor {name} differs from {of}, which {self._source.config} "
                "(tie_word_embeddings) says it is"
            )

    def finish(self, ignored: Iterable[str] = ()) -> None:
        """`ignored`: expressions that match the names of further unneeded tensors."""
        unused = sorted(
            name
            for name in self._left
            if not self._source.adds_nothing(name) and not any(re.search(expression, name) for expression in ignored)
        )
        if unused:
            more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
            raise ValueError(
                f"{self.path}: the checkpoint has tensors that {self._source.config} does not announce: "
                f"{printable(', '.join(unused[:3]))}{more}"
            )

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        source = self._source
        if name not in self:
            raise ValueError(f"{self.path}: tensor {name} is missing")
        if (stored := source.shape(name)) != shape:
            raise ValueError(
                f"{source.files[name]}: tensor {name}: expected shape {list(shape)} from {source.config}, "
                f"got {list(stored)}"
            )

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.close()


def parts(num_rows: int, row_elements: int, whole: int = 1) -> Iterator[tuple[int, int]]:
    """The first row and the end of each block."""
    unit = lcm(ROWS, whole)
    step = max(1, READ_AT_ONCE // max(row_elements, 1) // unit) * unit
    for begin in range(0, num_rows, step):
        yield begin, min(begin + step, num_rows)


def open_tensors(path: Path) -> TensorSource:
    """Raises FileNotFoundError, or ValueError for invalid files."""
    if is_gguf(path):
        return GgufTensors(path)
    raw = read_config(path / CONFIG)
    with naming(path / CONFIG):
        quantization = read_quantization(raw)
    stored = SafetensorsFiles(path)
    return stored if quantization is None else QuantizedTensors(stored, quantization)
