"""The types of options, and how their values are written."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

STANDARD_OUTPUT = Path("-")
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are not empty.", show_default=False)]
MaxTokens = Annotated[int, typer.Option(min=1, metavar="N", help="Limit for chat lines that set none.")]
MaxBatchTokens = Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of one forward pass.")]

UNIT_BYTES = {"B": 1, **{f"{p}B": 1000**n for n, p in enumerate("KMGT", 1)}}
UNIT_BYTES |= {f"{p}iB": 1024**n for n, p in enumerate("KMGT", 1)}


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Quantization(str, Enum):
    int8 = "int8"


class RunDevice(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Backend(str, Enum):
    auto = "auto"
    native = "native"
    transformers = "transformers"


class Levels(str, Enum):
    auto = "auto"
    none = "0"
    single = "1"


class GenerationConfig(str, Enum):
    auto = "auto"
    vllm = "vllm"


class DeviceName(str, Enum):
    a100 = "a100"
    h100 = "h100"
    h200 = "h200"
    cpu = "cpu"


BackendOption = Annotated[
    Backend,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="What runs the model: native, transformers, or auto, which prefers native.",
    ),
]


def memory_size(text: str) -> int:
    """Parses 40GiB, 512MiB or 12.5GB to bytes."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?i?B)", text)
    if not match or match[2] not in UNIT_BYTES or not (size := int(float(match[1]) * UNIT_BYTES[match[2]])):
        raise typer.BadParameter(f"expected a size such as 40GiB, 512MiB or 12GB, got {text!r}")
    return size


def duration(text: str) -> float:
    """Parses a duration as Slurm writes it to seconds: minutes, MM:SS, HH:MM:SS, DD-HH, DD-HH:MM or DD-HH:MM:SS."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise typer.BadParameter(f"expected a duration such as 90 (minutes), 1:30:00 or 2-12:00:00, got {text!r}")
    days, *parts = (int(part) if part else 0 for part in match.groups())
    begins_with_hours = match[1] is not None or match[4] is not None
    hours, minutes, seconds = parts if begins_with_hours else (0, *parts[:2])
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def text_or_file(text: str) -> str:
    """The content of the file of that name, if there is one."""
    path = Path(text)
    return path.read_text(encoding="utf-8") if len(text) < 4096 and "{" not in text and path.is_file() else text
