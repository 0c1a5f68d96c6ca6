"""An engine in a process of its own that runs jobs on demand, and the protocol it speaks.

It reads one JSON object per line on standard input and answers each with one line on standard output:

    {"load": 16384}        load the model with a KV pool of so many tokens; null: of a size that holds every job
      -> {"engine": "vllm", "version": "0.32.0", "variant": "sorted", "dtype": "bfloat16", "precision": "bfloat16",
          "load_s": 61.2}
    {"run": "W1.jsonl"}    run a job: a file of objects with prompt_token_ids and max_tokens, and perhaps group
      -> {"workload": "W1", "wall_s": 21.8, ...}

Time is from the job handed over to the last answer, with caches empty at its start. A request must get exactly
max_tokens tokens, or the process ends with an error. Standard library only: this runs in other engines' environments.
"""

from __future__ import annotations

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import Meter

# What weights are kept in, by what that is called. Engines are compared only with those of the same.
PRECISIONS = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8", "Q8_0": "int8", "Q4_K_M": "int4"}
# What products with such weights are made in at best.
ARITHMETIC = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8", "int4": "int8"}

Outputs = list[list[int]]  # token ids, in the order of the requests


@dataclass(frozen=True)
class Request:
    prompt_token_ids: list[int]
    max_tokens: int
    group: int | None = None  # requests of one group have a common prefix


WARM_UP = [Request([2] * num_tokens, 8, group) for group, num_tokens in enumerate((16, 300))]


class Contestant(ABC):
    """An engine as a subclass makes it usable."""

    engine: str
    version: str
    variant: str = ""
    dtype: str = "bfloat16"  # of weights, as the engine calls it: a key of PRECISIONS

    @property
    def precision(self) -> str:
        """The class that it is compared in."""
        return PRECISIONS[self.dtype]

    @abstractmethod
    def load(self, kv_tokens: int | None) -> None:
        """Loads the model and warms it up; drops what was loaded before."""

    @abstractmethod
    def prepare(self, requests: list[Request]) -> Callable[[], tuple[Outputs, dict[str, Any]]]:
        """Empties the caches and makes what the engine takes. The function returned is what is timed: it answers the
        requests, and adds what the engine tells of the run."""


def read_requests(path: Path) -> list[Request]:
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return [Request(row["prompt_token_ids"], row["max_tokens"], row.get("group")) for row in rows]


def run_job(contestant: Contestant, requests: list[Request]) -> dict[str, Any]:
    """Runs and measures one job. Raises ValueError where an output has not the length that was asked for."""
    job = contestant.prepare(requests)
    with Meter() as meter:
        outputs, facts = job()
    check_outputs(requests, outputs)
    output_tokens = sum(map(len, outputs))
    return {
        "wall_s": round(meter.wall_s, 6),
        "requests": len(requests),
        "prompt_tokens": sum(len(request.prompt_token_ids) for request in requests),
        "output_tokens": output_tokens,
        "output_tokens_per_s": round(output_tokens / meter.wall_s, 1),
        "peak_rss_gib": round(meter.peak_rss_bytes / 2**30, 3),
        "cpu_s": round(meter.cpu_s, 2),
        "foreign_share": round(meter.foreign_share, 3),
        **facts,
        "first_tokens": [output[0] for output in outputs],
    }


def check_outputs(requests: list[Request], outputs: Outputs) -> None:
    if len(outputs) != len(requests):
        raise ValueError(f"expected {len(requests)} outputs, got {len(outputs)}")
    for index, (request, output) in enumerate(zip(requests, outputs, strict=True)):
        if len(output) != request.max_tokens:
            raise ValueError(f"request {index}: expected {request.max_tokens} output tokens, got {len(output)}")


def serve(contestant: Contestant) -> None:
    """Answers standard input until it ends. What libraries print to standard output goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(answer(contestant, json.loads(line))), file=answers, flush=True)


def answer(contestant: Contestant, message: dict[str, Any]) -> dict[str, Any]:
    if "load" in message:
        start = time.perf_counter()
        contestant.load(message["load"])
        names = ("engine", "version", "variant", "dtype", "precision")
        return {name: getattr(contestant, name) for name in names} | {"load_s": round(time.perf_counter() - start, 2)}
    path = Path(message["run"])
    return {"workload": path.stem, **run_job(contestant, read_requests(path))}
