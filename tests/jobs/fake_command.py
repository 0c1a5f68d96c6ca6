"""`batchllm` as a separate process, with FakeLLM in place of the model: python -m tests.jobs.fake_command ARGS

FAKE_SECONDS: how long each answer takes. FAKE_LOAD_SECONDS: how long the model takes to load.
"""

import os
import sys
import time
from types import ModuleType
from typing import Any

from batchllm.cli import main
from tests.jobs.fake_llm import FakeLLM


class SlowLLM(FakeLLM):
    def __init__(self, *args: str, **options: Any) -> None:
        super().__init__(*args, **options)
        time.sleep(float(os.environ.get("FAKE_LOAD_SECONDS", "0")))
        self.after_each = lambda: time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))


if __name__ == "__main__":
    llm = ModuleType("batchllm.llm")  # the real one imports torch
    llm.LLM = SlowLLM  # type: ignore[attr-defined]
    sys.modules["batchllm.llm"] = llm
    main()
