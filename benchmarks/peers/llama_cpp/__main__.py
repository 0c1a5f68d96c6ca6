"""llama.cpp as a contestant: python -m benchmarks.peers.llama_cpp --directory build/peers/llama_cpp

llama.cpp has a library and no batch driver; job_runner.cpp is one that knows the groups. Weights of --dtype, float16 KV
(its default), flash attention.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import isa
from benchmarks.contestant import WARM_UP, Contestant, Outputs, Request, serve


class LlamaCpp(Contestant):
    engine = "llama.cpp"
    version = "11434"  # install.sh builds it
    variant = "group-aware"

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.dtype = options.dtype
        self.runner: Any = None

    def load(self, kv_tokens: int | None) -> None:
        if self.runner:
            self.runner.stdin.close()
            self.runner.wait()
        build = f"build-{isa.limited_to() or 'native'}"
        program, model = (
            str(self.options.directory / name) for name in (f"{build}/job_runner", f"model-{self.dtype}.gguf")
        )
        numbers = (len(os.sched_getaffinity(0)), self.options.wave, kv_tokens or 0)
        self.runner = subprocess.Popen(
            [program, model, *map(str, numbers)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.prepare(WARM_UP)()

    def prepare(self, requests: list[Request]) -> Callable[[], tuple[Outputs, dict[str, Any]]]:
        rows = [
            (index if request.group is None else request.group, request.max_tokens, len(request.prompt_token_ids))
            for index, request in enumerate(requests)
        ]
        lines = [
            " ".join(map(str, [*row, *request.prompt_token_ids])) for row, request in zip(rows, requests, strict=True)
        ]
        self.tell(f"job {len(requests)}", *lines)
        self.hear("ready")

        def job() -> tuple[Outputs, dict[str, Any]]:
            self.tell("run")
            (num_computed,) = self.hear("computed")
            outputs = [list(map(int, self.hear("output"))) for _ in requests]
            decoded = sum(request.max_tokens - 1 for request in requests)
            return outputs, {"computed_prompt_tokens": int(num_computed) - decoded}

        return job

    def tell(self, *lines: str) -> None:
        self.runner.stdin.writelines(line + "\n" for line in lines)
        self.runner.stdin.flush()

    def hear(self, kind: str) -> list[str]:
        """What follows `kind` on the next line. Raises RuntimeError where the line says something else."""
        line = self.runner.stdout.readline()
        first, *rest = line.split() or ["end of file"]
        if first != kind:
            raise RuntimeError(f"job_runner: expected {kind}, got {line or first}")
        return rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", required=True, type=Path, help="has model-DTYPE.gguf and build-*/job_runner")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "Q8_0", "Q4_K_M"), help="of the weights")
    parser.add_argument("--wave", type=int, default=32, help="requests that run together")
    serve(LlamaCpp(parser.parse_args()))


if __name__ == "__main__":
    main()
