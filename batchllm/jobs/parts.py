"""Where a job's records are: in a file and one beside it, or, of a job on a cluster, in a directory that has a part for
each parcel."""

from __future__ import annotations

import re
from pathlib import Path


def part_path(directory: Path, parcel: int) -> Path:
    """Where the answers of a parcel are. One replica at a time writes there."""
    return directory / f"part-{parcel:06}.jsonl"


def part_paths(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("part-*.jsonl") if re.fullmatch(r"part-\d{6,}\.jsonl", path.name))


def answer_paths(output: Path) -> list[Path]:
    return part_paths(output) if output.is_dir() else [output]


def errors_path(output: Path) -> Path:
    return output / "errors.jsonl" if output.is_dir() else output.with_suffix(".errors.jsonl")
