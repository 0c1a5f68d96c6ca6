#!/usr/bin/env python3
"""Writes the benchmark jobs: random token ids with known sharing, shuffled, exact output lengths.

    python benchmarks/workloads.py DIR [W1 W2 ...] [--batch]

W1  8 groups x 32   prefix 1,024  own 64   output 32
W2  64 x 4          512           64       16
W3  16 x 8          256 for all, then 512  own 48  output 4 to 64
W4  64 x 1          no sharing    512      32
W5  32 x 8          2,048         64       16   with a KV pool of 16,384 tokens
W1x2  W1 with 16 groups: twice the work
"""

import argparse
import json
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np

TOKEN_IDS = (1000, 48000)  # of SmolLM2's 49,152: plain words, no special tokens


@dataclass(frozen=True)
class Workload:
    seed: int
    groups: int
    readers: int
    prefix: int
    own: int
    output: tuple[int, int]  # inclusive
    system: int = 0
    kv_tokens: int | None = None  # of the KV pool; None is one that holds the whole job

    def rows(self) -> list[dict]:
        """Rows of {prompt_token_ids, max_tokens, group}, shuffled."""
        rng = np.random.default_rng(self.seed)

        def ids(count: int) -> list[int]:
            return rng.integers(*TOKEN_IDS, count).tolist()

        system = ids(self.system)
        rows = []
        for group in range(self.groups):
            prefix = system + ids(self.prefix)
            for _ in range(self.readers):
                low, high = self.output
                max_tokens = low if low == high else int(rng.integers(low, high + 1))
                rows.append({"prompt_token_ids": prefix + ids(self.own), "max_tokens": max_tokens, "group": group})
        order = np.random.default_rng(self.seed + 7).permutation(len(rows))
        return [rows[i] for i in order]

    def scaled(self, share: float) -> "Workload":
        """A smaller job of the same kind: a share of the groups, two at least, and the same pool."""
        return replace(self, groups=max(2, round(share * self.groups)))


WORKLOADS = {
    "W1": Workload(seed=1, groups=8, readers=32, prefix=1024, own=64, output=(32, 32)),
    "W2": Workload(seed=2, groups=64, readers=4, prefix=512, own=64, output=(16, 16)),
    "W3": Workload(seed=3, groups=16, readers=8, prefix=512, own=48, output=(4, 64), system=256),
    "W4": Workload(seed=4, groups=64, readers=1, prefix=0, own=512, output=(32, 32)),
    "W5": Workload(seed=6, groups=32, readers=8, prefix=2048, own=64, output=(16, 16), kv_tokens=16384),
    "W1x2": Workload(seed=1, groups=16, readers=32, prefix=1024, own=64, output=(32, 32)),
}


def write_workload(name: str, directory: Path, *, batch: bool = False) -> Path:
    """batch: as lines of the OpenAI Batch format, which `batchllm plan` and `run` take."""
    path = directory / (f"{name}.batch.jsonl" if batch else f"{name}.jsonl")
    rows = WORKLOADS[name].rows()
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in (map(batch_line, count(), rows) if batch else rows))
    return path


def batch_line(number: int, row: dict) -> dict:
    body = {"prompt": row["prompt_token_ids"], "max_tokens": row["max_tokens"]}
    return {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(WORKLOADS)}; all where none is given")
    parser.add_argument("--batch", action="store_true", help="as job files of batchllm, NAME.batch.jsonl")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in WORKLOADS]:
        parser.error(f"no workload {unknown[0]}; there are {', '.join(WORKLOADS)}")
    options.directory.mkdir(parents=True, exist_ok=True)
    for name in options.names or WORKLOADS:
        print(write_workload(name, options.directory, batch=options.batch))


if __name__ == "__main__":
    main()
