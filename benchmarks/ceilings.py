"""What this machine can do: rates of matrix products of a model's shapes and of reading memory. Prints JSON.

    python -m benchmarks.ceilings --model DIR --arithmetic float32

Matrix products are torch's, by oneDNN with packed weights or by F.linear, whichever is faster, of M rows and each of a
layer's weights; in int8 they are oneDNN's, of rows that are quantised already. A layer's rate weighs them by their
arithmetic. Each time is the best of several.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import linear

from batchllm.device.int8 import Int8Linear, Int8Rows, quantize
from batchllm.device.packed import can_pack, packed, packed_linear
from batchllm.models.config import ModelConfig

ARITHMETIC = ("bfloat16", "float32", "int8")
LAYER_ROWS = (1, 16, 64, 256, 2048)
LOGIT_ROWS = 256
READ_BYTES = 256 << 20  # past any cache
NUM_TIMES, SECONDS_A_TIME = 5, 0.05


def layer_weights(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of a layer's matrix products."""
    layer, hidden_size = model.layers[0], model.hidden_size
    q_size, kv_size = layer.attention.q_size, layer.attention.kv_size
    return {
        "qkv": (q_size + 2 * kv_size, hidden_size),
        "o": (hidden_size, q_size),
        "gate_up": (2 * layer.intermediate_size, hidden_size),
        "down": (hidden_size, layer.intermediate_size),
    }


def best_s(run: Callable[[], object]) -> float:
    run()
    start = time.perf_counter()
    run()
    repeats = max(1, round(SECONDS_A_TIME / (time.perf_counter() - start)))
    times = []
    for _ in range(NUM_TIMES):
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        times.append((time.perf_counter() - start) / repeats)
    return min(times)


def linear_s(rows: int, weight: tuple[int, int], arithmetic: str) -> float:
    outputs, inputs = weight
    w, x = torch.randn(outputs, inputs), torch.randn(rows, inputs)
    if arithmetic == "int8":
        int8_linear, int8_rows = Int8Linear(w), Int8Rows.empty(rows, inputs)
        quantize(x, out=int8_rows)
        return best_s(lambda: deque(int8_linear.products_in_parts(int8_rows), maxlen=0))
    dtype = getattr(torch, arithmetic)
    w, x = w.to(dtype), x.to(dtype)
    plain_s = best_s(lambda: linear(x, w))
    if not can_pack(dtype):
        return plain_s
    w_packed = packed(w)
    return min(plain_s, best_s(lambda: packed_linear(x, w_packed, None)))


def gflop(rows: int, weight: tuple[int, int]) -> float:
    return 2 * rows * weight[0] * weight[1] / 1e9


@torch.inference_mode()
def measure(model: ModelConfig, arithmetic: str) -> dict[str, float]:
    """{"gemm_gflops_m16": ..., "lm_head_gflops": ..., "read_gb_per_s": ...}"""
    weights = layer_weights(model).values()
    ceilings = {}
    for rows in LAYER_ROWS:
        seconds = sum(linear_s(rows, weight, arithmetic) for weight in weights)
        ceilings[f"gemm_gflops_m{rows}"] = sum(gflop(rows, weight) for weight in weights) / seconds
    logits = (model.vocab_size, model.hidden_size)
    ceilings["lm_head_gflops"] = gflop(LOGIT_ROWS, logits) / linear_s(LOGIT_ROWS, logits, arithmetic)
    memory = torch.ones(READ_BYTES // 4)
    ceilings["read_gb_per_s"] = READ_BYTES / best_s(memory.sum) / 1e9
    return {name: round(value, 1) for name, value in ceilings.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a directory with config.json")
    parser.add_argument("--arithmetic", choices=ARITHMETIC, default="bfloat16", help="what products are made in")
    options = parser.parse_args()
    print(json.dumps(measure(ModelConfig.from_directory(options.model), options.arithmetic)))


if __name__ == "__main__":
    main()
