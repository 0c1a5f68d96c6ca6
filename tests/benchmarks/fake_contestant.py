"""A contestant without a model: repeats the last prompt token, or misbehaves as its argument says. A second argument
is its dtype."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.contestant import Contestant, Outputs, Request, serve


class Fake(Contestant):
    engine, version = "fake", "1"

    def __init__(self, behaviour: str, dtype: str = "bfloat16") -> None:
        self.variant, self.dtype = behaviour, dtype

    def load(self, kv_tokens: int | None) -> None:
        self.kv_tokens = kv_tokens

    def prepare(self, requests: list[Request]) -> Callable[[], tuple[Outputs, dict[str, Any]]]:
        def job() -> tuple[Outputs, dict[str, Any]]:
            if self.variant == "dies":
                raise RuntimeError("out of luck")
            if self.variant == "hangs":
                time.sleep(60)
            if self.variant == "talks":
                print("from Python")
                os.write(1, b"from C\n")
                subprocess.run(["echo", "from a child"], check=True)
            too_few = self.variant == "short"
            outputs = [request.prompt_token_ids[-1:] * (request.max_tokens - too_few) for request in requests]
            return outputs, {"kv_tokens_seen": self.kv_tokens}

        return job


if __name__ == "__main__":
    serve(Fake(*sys.argv[1:]))
