"""The header of a GGUF file: its metadata, and where its tensors are.

The package gguf also has a reader, but it makes several arrays for every text of a vocabulary, which takes seconds and
hundreds of megabytes.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from numpy.typing import NDArray

from batchllm.models.fields import naming, positive_int
from batchllm.text import printable

SUFFIX = ".gguf"
MAGIC, VERSIONS = b"GGUF", (2, 3)
ALIGNMENT = 32  # of tensors, in bytes, by default
MAX_DIMENSIONS = 4
# Formats of struct, by the numbers that types of metadata have.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
SUPPORTED_TYPES = tuple(
    GGMLQuantizationType[name]
    for name in (
        *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    )
)
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class GgufTensor:
    file: Path
    type: GGMLQuantizationType  # of SUPPORTED_TYPES
    shape: tuple[int, ...]  # (..., rows, elements of a row)
    offset: int  # of its first byte in the file

    @property
    def row_bytes(self) -> int:
        block_elements, block_bytes = GGML_QUANT_SIZES[self.type]
        return self.shape[-1] // block_elements * block_bytes

    @property
    def num_rows(self) -> int:
        return prod(self.shape[:-1])

    def rows(self, file: BinaryIO, begin: int, end: int) -> NDArray[np.float32]:
        """Rows [begin, end), read from `file`, which must be this one, dequantised: [end - begin, elements of a
        row]."""
        num_rows = end - begin
        file.seek(self.offset + begin * self.row_bytes)
        blocks = np.fromfile(file, np.uint8, num_rows * self.row_bytes).reshape(num_rows, self.row_bytes)
        return dequantize(blocks, self.type).reshape(num_rows, self.shape[-1])


@dataclass(frozen=True)
class GgufFile:
    """The header, combined from all files of a model."""

    metadata: dict[str, Any]  # arrays of texts as their lengths
    tensors: dict[str, GgufTensor]


def is_gguf(path: Path) -> bool:
    return path.name.endswith(SUFFIX) and not path.is_dir()


def gguf_files(path: Path) -> list[Path]:
    """The file itself and, if its name says that it is the first of several, the others, whether they exist or not."""
    match = PART.fullmatch(path.name)
    if match is None or int(match[2]) != 1:
        return [path]
    return [path.with_name(f"{match[1]}-{part:05}-of-{match[3]}{SUFFIX}") for part in range(1, int(match[3]) + 1)]


def read_gguf(path: Path) -> GgufFile:
    """Raises FileNotFoundError for a missing file, and ValueError that names it and its invalid, truncated or
    unsupported part."""
    metadata, tensors = _read_header(path)
    files = gguf_files(path)
    with naming(path):
        if (number := metadata.get("split.no")) not in (None, 0):
            raise ValueError(f"split.no: expected 0, that of the first of several files, got {number!r:.80}")
        if (num_files := positive_int(metadata, "split.count", 1)) != len(files):
            raise ValueError(f"split.count: expected {len(files)}, as the file's name says, got {num_files}")
    for part, file in enumerate(files[1:], start=2):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; it is number {part} of {num_files} that are one model")
        others = _read_header(file)[1]
        if twice := sorted(tensors.keys() & others.keys()):
            raise ValueError(f"{file}: tensor {twice[0]} is in {tensors[twice[0]].file.name}, too")
        tensors |= others
    with naming(path):
        if (num_tensors := positive_int(metadata, "split.tensors.count", len(tensors))) != len(tensors):
            raise ValueError(f"split.tensors.count: expected {len(tensors)}, as many as there are, got {num_tensors}")
    return GgufFile(metadata, tensors)


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    try:
        with path.open("rb") as file, naming(path):
            if not os.fstat(file.fileno()).st_size:
                raise ValueError("not a GGUF file: it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Header(data).read(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None


class _Header:
    """A position in a file, which advances as it is read."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.place = 0

    def read(self, path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        if self.data[: len(MAGIC)] != MAGIC:
            raise ValueError(f"not a GGUF file: it begins with {bytes(self.data[: len(MAGIC)])!r}")
        self.place = len(MAGIC)
        if (version := self.number("I")) not in VERSIONS:
            kind = "big-endian, or of a version" if version % (1 << 16) == 0 else "version"
            raise ValueError(f"GGUF {kind} {version}; expected one of {', '.join(map(str, VERSIONS))}, little-endian")
        num_tensors, num_values = self.number("Q"), self.number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(num_values):
            key = self.text()
            metadata[key] = self.value(key, self.number("I"))
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment: expected a positive integer, got {alignment!r:.80}")
        stored = [self.tensor() for _ in range(num_tensors)]
        begin = -(-self.place // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, tensor_type, shape, offset in stored:
            if name in tensors:
                raise ValueError(f"tensor {name}: there are two of them")
            tensor = tensors[name] = GgufTensor(path, tensor_type, shape, begin + offset)
            end = tensor.offset + tensor.num_rows * tensor.row_bytes
            if end > len(self.data):
                raise ValueError(f"cut off: tensor {name} ends at byte {end:,}, and the file at {len(self.data):,}")
        return metadata, tensors

    def value(self, key: str, kind: int) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == TEXT:
            return self.text()
        element_kind = self.number("I") if kind == ARRAY else None
        if element_kind != TEXT and element_kind not in NUMBERS:
            raise ValueError(f"{printable(key)}: metadata of type {kind} (of {element_kind}) is not supported")
        length = self.number("Q")
        if element_kind != TEXT:
            return list(self.numbers(length, NUMBERS[element_kind]))
        for _ in range(length):
            self.skip(self.number("Q"))
        return length

    def tensor(self) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
        name = printable(self.text())
        num_dimensions = self.number("I")
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"tensor {name}: expected 1 to {MAX_DIMENSIONS} dimensions, got {num_dimensions}")
        shape = self.numbers(num_dimensions, "Q")[::-1]
        number, offset = self.number("I"), self.number("Q")
        if number not in SUPPORTED_TYPES:
            got = next((kind.name for kind in GGMLQuantizationType if kind == number), number)
            supported = ", ".join(kind.name for kind in SUPPORTED_TYPES)
            raise ValueError(f"tensor {name}: expected a type of {supported}, got {got}")
        kind = GGMLQuantizationType(number)
        if shape[-1] % (block := GGML_QUANT_SIZES[kind][0]):
            raise ValueError(f"tensor {name}: expected rows of whole blocks of {block} ({kind.name}), got {shape[-1]}")
        return name, kind, shape, offset

    def number(self, kind: str) -> Any:
        return self.numbers(1, kind)[0]

    def numbers(self, count: int, kind: str) -> tuple[Any, ...]:
        begin = self.place
        self.skip(count * struct.calcsize(f"<{kind}"))
        return struct.unpack_from(f"<{count}{kind}", self.data, begin)

    def text(self) -> str:
        length = self.number("Q")
        begin = self.place
        self.skip(length)
        return self.data[begin : self.place].decode()

    def skip(self, num_bytes: int) -> None:
        self.place += num_bytes
        if self.place > len(self.data):
            raise ValueError(f"cut off: the file ends within its header, at byte {len(self.data):,}")
