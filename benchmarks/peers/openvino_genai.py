"""OpenVINO GenAI's continuous batching as a contestant: python -m benchmarks.peers.openvino_genai --model DIR

It looks a prefix up only when a request is added. So one request is added first, then one of each group, then all
others; each wave when the one before it has got its first tokens, while those before it go on. --at-once adds all
together. Only a new pipeline has an empty prefix cache, so every job gets one. DIR is an exported model. It computes in
bfloat16 or float32 and keeps KV in that; int8 is a model with such weights, which computes in what the CPU has.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai

from benchmarks import isa
from benchmarks.contestant import WARM_UP, Contestant, Outputs, Request, serve

BLOCK_TOKENS = 32  # of a KV block on the CPU


class OpenVino(Contestant):
    engine = "openvino-genai"
    version = genai.__version__.split("-")[0]

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.dtype = options.dtype
        self.variant = "at once" if options.at_once else "prefixes first"
        self.kv_tokens: int | None = None
        self.pipeline: Any = None

    def load(self, kv_tokens: int | None) -> None:
        self.kv_tokens = kv_tokens
        self.pipeline = None  # give its memory back first
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = self.options.max_batch_tokens
        scheduler.enable_prefix_caching = True
        scheduler.dynamic_split_fuse = True
        if kv_tokens:
            scheduler.num_kv_blocks = kv_tokens // BLOCK_TOKENS
        else:
            scheduler.cache_size = self.options.kv_gib
        has_bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        computes_in = "bf16" if self.dtype == "bfloat16" or (self.dtype == "int8" and has_bf16) else "f32"
        properties = {
            "INFERENCE_PRECISION_HINT": computes_in,
            "KV_CACHE_PRECISION": computes_in,
            "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.pipeline = genai.ContinuousBatchingPipeline(self.options.model, scheduler, "CPU", properties)
        self.answer(WARM_UP)

    def prepare(self, requests: list[Request]) -> Callable[[], tuple[Outputs, dict[str, Any]]]:
        self.load(self.kv_tokens)
        return lambda: (self.answer(requests), {})

    def answer(self, requests: list[Request]) -> Outputs:
        everything = list(range(len(requests)))
        handles: dict[int, Any] = {}
        for wave in [everything] if self.options.at_once else prefixes_first(requests):
            for index in wave:
                prompt = openvino.Tensor(np.array([requests[index].prompt_token_ids], np.int64))
                handles[index] = self.pipeline.add_request(index, prompt, exactly(requests[index].max_tokens))
            while not all(handles[index].can_read() for index in wave):
                self.pipeline.step()
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        return [handles[index].read_all()[0].generated_ids for index in everything]


def prefixes_first(requests: list[Request]) -> list[list[int]]:
    """Indices of requests: the first, the first of every other group, all others."""
    firsts = list({request.group: index for index, request in reversed(list(enumerate(requests)))}.values())
    rest = sorted(set(range(len(requests))) - set(firsts))
    return [wave for wave in (firsts[:1], firsts[1:], rest) if wave]


def exactly(num_tokens: int) -> genai.GenerationConfig:
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = num_tokens
    config.ignore_eos = True
    config.do_sample = False
    return config


def hide_avx512() -> None:
    """Where all are limited: starts this program again with what answers OpenVINO's questions about the CPU."""
    library = str(Path(sys.prefix) / "lib/libavx2.so")
    if isa.limited_to() == "avx2" and os.environ.get("LD_PRELOAD") != library:
        os.environ["LD_PRELOAD"] = library
        os.execv(sys.executable, sys.orig_argv)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="exported, see README.md")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32", "int8"))
    parser.add_argument("--at-once", action="store_true", help="add all requests together")
    parser.add_argument("--kv-gib", type=int, default=4, help="of KV cache where a job names no number of tokens")
    parser.add_argument("--max-batch-tokens", type=int, default=2048)
    options = parser.parse_args()
    hide_avx512()
    serve(OpenVino(options))


if __name__ == "__main__":
    main()
