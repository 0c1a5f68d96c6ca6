"""The costs by which attention is planned and predicted, measured anew, in the form of kGpus (gpu_model.h).

    python -m benchmarks.gpu_day.costs

Each is what one kind of tile takes where nothing else is asked for: keys that many blocks wait for, keys of different
lengths, keys that are in the L2 cache, launches with nothing to do, states with hardly a key. Medians of CUDA graphs.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

import batchllm_ext as ext
from benchmarks.gpu_day.device import DEVICE, attempt, copies, gpu_model, num_multiprocessors, randn, seconds, stream
from benchmarks.gpu_day.forest import PAGE_SIZE, Attention, Forest, Shape
from benchmarks.gpu_day.machine import ceilings
from benchmarks.gpu_day.results import DRY, record

HEADS, HEAD_DIM = ((8, 2), 64) if DRY else ((32, 8), 128)
MANY = 4 if DRY else 1024  # requests, far more than there are places for
SHORT, LONG = (16, 64) if DRY else (64, 1024)  # keys
GROUP_SIZE = HEADS[0] // HEADS[1]
TILES = {"narrow": 1, "medium": 64 // GROUP_SIZE, "large": 128 // GROUP_SIZE}  # tokens
KEY_BYTES = 4 * HEADS[1] * HEAD_DIM  # K and V of a token


def tiles_s(shape: Shape, share: bool | str = False) -> float:
    """Seconds of a call, whose keys come from memory."""
    forest = Forest(shape, heads=HEADS, head_dim=HEAD_DIM)
    run, pages = Attention(forest, forest.plan(share=share)), copies(forest.k_pages, forest.v_pages)
    return seconds(lambda turn: run(*pages[turn]), len(pages))


def key_seconds() -> dict[str, float]:
    """By kind of tile, of one KV head on one multiprocessor; and of a narrow block apart from its keys, on the GPU."""
    costs = {}
    for kind, rows in TILES.items():
        short_s, long_s = (tiles_s(Shape(0, MANY, keys + rows, rows_each=rows)) for keys in (SHORT, LONG))
        key_s = (long_s - short_s) / (MANY * (LONG - SHORT))
        costs[f"key_s_{kind}"] = key_s * num_multiprocessors() / HEADS[1]
        if kind == "narrow":
            costs["bytes_per_s"] = KEY_BYTES / key_s
            costs["narrow_tile_s"] = short_s / MANY - SHORT * key_s
    return costs


def cached_bytes_per_s() -> float:
    """What a multiprocessor loads of keys that all requests read, each for itself."""
    shape = Shape(LONG, MANY, PAGE_SIZE)
    read_s = tiles_s(shape) - tiles_s(replace(shape, prefix=0))
    return MANY * LONG * KEY_BYTES / read_s / num_multiprocessors()


def launch_s() -> float:
    """Of a kernel with one row to do, behind another."""
    pages = torch.zeros(2, 1, PAGE_SIZE, HEADS[1], HEAD_DIM, device=DEVICE, dtype=torch.bfloat16)
    k, v = randn(2, 1, HEADS[1], HEAD_DIM)
    slots = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    return seconds(lambda _: ext.append_kv(k, v, slots, *pages, stream=stream()), 40)


def block_s() -> float:
    """Of a block with one key, apart from its launch."""
    return tiles_s(Shape(0, 1, 1)) - launch_s()


def merge_bytes_per_s() -> float:
    """Of the states that sharing a short prefix writes and reads, its launches included."""
    shape = Shape(PAGE_SIZE, MANY, PAGE_SIZE)
    states_s = tiles_s(shape, share="always") - tiles_s(shape)
    return 2 * 2 * MANY * HEADS[0] * (2 * HEAD_DIM + 4) / states_s


def measure() -> dict[str, float]:
    return {
        "flops_per_s": ceilings()["bf16_flops_per_s"],
        **key_seconds(),
        "multiprocessor_bytes_per_s": cached_bytes_per_s(),
        "launch_s": launch_s(),
        "block_s": block_s(),
        "merge_bytes_per_s": merge_bytes_per_s(),
    }


def text(costs: dict[str, float]) -> str:
    """Beside what is believed of the GPU."""
    believed = ext.gpu_models()[gpu_model()]
    lines = [f"{'dry: on a CPU, no figure means anything' if DRY else believed['name']}"]
    for name, value in costs.items():
        beside = f"  // in the table {believed[name]:.4g}" if name in believed else ""
        lines.append(f"    .{name} = {value:.4g},{beside}")
    return "\n".join(lines)


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    with attempt("costs"):
        costs = measure()
        record("costs", **costs)
        print(text(costs), flush=True)
    sys.exit(attempt.exit_status)


if __name__ == "__main__":
    main()
