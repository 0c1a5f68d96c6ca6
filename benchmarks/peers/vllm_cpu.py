"""vLLM's CPU back end as a contestant: python -m benchmarks.peers.vllm_cpu --model DIR [--sort | --plan]

Prefix caching is on and emptied before each job. tcmalloc and Intel's OpenMP are loaded before everything else, as
vLLM's guide for CPUs advises.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import isa
from benchmarks.contestant import WARM_UP, Contestant, Outputs, Request, serve

CPUS = sorted(os.sched_getaffinity(0))
SETTINGS = {
    "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, CPUS)),
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    # What it compiles is kept, by all that it is made for but the instruction set.
    "VLLM_CACHE_ROOT": str(Path("~/.cache/vllm").expanduser() / (isa.limited_to() or "native")),
}

if isa.limited_to() == "avx2":  # vLLM takes its kernels by what torch says; its processes run this file's head, too
    import torch

    NEWER = ("avx512", "avx10", "avx_vnni", "amx")
    CAPABILITIES = {
        name: False if name.startswith(NEWER) else value for name, value in torch.cpu.get_capabilities().items()
    }
    torch.cpu.get_capabilities = lambda: CAPABILITIES

TCMALLOC = Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")
OPENMP = Path(sys.prefix) / "lib/libiomp5.so"


SHARED_ATTENTION = "batchllm.integrations.vllm_attention.SharedAttentionWorker"
ORDERS = ("as submitted", "sorted", "planned")  # by tokens; by batchllm.integrations.vllm


class VllmCpu(Contestant):
    """`variant`, one of ORDERS, is how the next job is handed over."""

    engine = "vllm"

    def __init__(self, options: argparse.Namespace) -> None:
        import vllm

        self.vllm, self.version = vllm, vllm.__version__
        self.variant = options.order
        self.options = options
        self.dtype = options.dtype
        self.llm: Any = None

    def load(self, kv_tokens: int | None) -> None:
        if self.llm:
            self.llm.llm_engine.engine_core.shutdown()
        options = self.options
        self.llm = self.vllm.LLM(
            model=options.model,
            dtype=self.dtype,
            enable_prefix_caching=True,
            block_size=options.block_size,
            kv_cache_memory_bytes=options.kv_gib << 30,
            num_gpu_blocks_override=kv_tokens // options.block_size if kv_tokens else None,
            max_model_len=options.max_model_len,
            max_num_batched_tokens=options.max_batch_tokens,
            enforce_eager=options.eager,
            worker_cls=SHARED_ATTENTION if options.shared_attention else "auto",
            disable_log_stats=True,
        )
        self.prepare(WARM_UP)()

    def prepare(self, requests: list[Request]) -> Callable[[], tuple[Outputs, dict[str, Any]]]:
        # The cache is matched block by block in the order of arrival; sorted, what is shared arrives together.
        key = (lambda index: requests[index].prompt_token_ids) if self.variant == "sorted" else None
        order = sorted(range(len(requests)), key=key)
        prompts = [{"prompt_token_ids": requests[index].prompt_token_ids} for index in order]
        params = [
            self.vllm.SamplingParams(
                temperature=0, max_tokens=requests[index].max_tokens, ignore_eos=True, detokenize=False
            )
            for index in order
        ]
        generate = self.llm.generate
        if self.variant == "planned":
            from batchllm.integrations import vllm as planned

            generate = partial(planned.generate, self.llm)
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not empty its prefix cache")

        def job() -> tuple[Outputs, dict[str, Any]]:
            results = generate(prompts, params, use_tqdm=False)
            outputs: Outputs = [[] for _ in requests]
            for index, result in zip(order, results, strict=True):
                outputs[index] = list(result.outputs[0].token_ids)
            cached = sum(result.num_cached_tokens or 0 for result in results)
            return outputs, {"computed_prompt_tokens": sum(map(len, (p["prompt_token_ids"] for p in prompts))) - cached}

        return job


def parser(description: str) -> argparse.ArgumentParser:
    """Of the options of an engine."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    result.add_argument("--kv-gib", type=int, default=4, help="of KV cache where a job names no number of tokens")
    result.add_argument("--block-size", type=int, default=128, help="tokens of a KV block")
    result.add_argument("--max-batch-tokens", type=int, default=2048)
    result.add_argument("--max-model-len", type=int, default=4096)
    result.add_argument("--shared-attention", action="store_true", help="batchllm.integrations.vllm_attention")
    result.add_argument("--eager", action="store_true", help="compile nothing: ready in seconds, and slower")
    return result


def preload() -> None:
    """Starts this program again with what must be loaded before everything else, where it is not."""
    libraries = f"{TCMALLOC}:{OPENMP}"
    if os.environ.get("LD_PRELOAD") != libraries:
        for library in (TCMALLOC, OPENMP):
            if not library.exists():
                sys.exit(f"{library} is missing; benchmarks/peers/README.md says where it comes from")
        os.environ.update(SETTINGS, LD_PRELOAD=libraries)
        os.execv(sys.executable, sys.orig_argv)


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--model", required=True)
    order = options_parser.add_mutually_exclusive_group()
    order.add_argument(
        "--sort", dest="order", action="store_const", const="sorted", help="in the order of the prompts' tokens"
    )
    order.add_argument("--plan", dest="order", action="store_const", const="planned", help="in our planner's order")
    options_parser.set_defaults(order="as submitted")
    options = options_parser.parse_args()
    preload()
    serve(VllmCpu(options))


if __name__ == "__main__":
    main()
