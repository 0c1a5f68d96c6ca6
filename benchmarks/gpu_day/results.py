"""Where findings go: JSON lines of $OUT/results.jsonl, each on disk before the program goes on. Standard library only.

A line is {"what": kind, ...}. One with "error" or "fatal" is a failure, one with "skipped" says why there is no figure.
The lines {"stage": ...} are those of stages.py.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Line = dict[str, Any]

DRY = os.environ.get("GPU_DAY_DRY") == "1"
OUT = Path(os.environ.get("OUT", "out/gpu_day"))
RESULTS = OUT / "results.jsonl"
END = float(os.environ.get("GPU_DAY_END", "inf"))  # when stages.py will end this program


def left_s() -> float:
    """Seconds that this program has left."""
    return END - time.time()


def write(line: Line) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    text = json.dumps(line, default=str)
    with RESULTS.open("a") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    print(text[:400], flush=True)


def record(what: str, **values: Any) -> None:
    write({"what": what, **values})


def read(path: Path) -> list[Line]:
    """Raises ValueError with the file and the line that is no JSON object; a last line that was cut off is left out."""
    texts = path.read_text().splitlines(keepends=True)
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            if number == len(texts) and not text.endswith("\n"):
                break
            raise ValueError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(line, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object, got {text.strip()[:80]}")
        lines.append(line)
    return lines


def is_failure(line: Line) -> bool:
    return "error" in line or "fatal" in line or line.get("rc", 0) != 0


def set_older_aside() -> None:
    """An earlier run's results.jsonl becomes results.1.jsonl, or the first number that is free."""
    if RESULTS.exists():
        number = 1
        while (older := OUT / f"results.{number}.jsonl").exists():
            number += 1
        RESULTS.rename(older)
