"""The most memory that loading a large GGUF file takes, beside what its weights take once they are loaded.

    python -m benchmarks.loading_memory --gigabytes 8 [--precisions int8 bfloat16] [--directory DIR]

The file is written first: a Llama of layers of 8 billion parameters' model, as many as fill it, with random blocks of
Q8_0. Each precision is loaded and packed in a process of its own, whose peak is what Linux says of it (VmHWM) less what
it was before the first tensor was read; the end is what is resident once all is packed (VmRSS), likewise.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch

from batchllm.models.backend import describe_model, load_model
from benchmarks.machine import describe

VOCAB_SIZE, HIDDEN_SIZE, INTERMEDIATE_SIZE = 32_000, 4096, 14_336
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 32, 8, 128
Q8_0 = gguf.GGMLQuantizationType.Q8_0
PRECISIONS = {"int8": "int8", "bfloat16": None}  # quantize, with keys and values in bfloat16
GIGABYTE = 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=8.0, help="of the file")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--directory", type=Path, help="where the file is written for a while")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(loaded(args.load, PRECISIONS[args.precisions[0]])))
        return
    print(describe())
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        path = Path(directory) / "random-Q8_0.gguf"
        write_random(path, int(args.gigabytes * GIGABYTE))
        print(f"a file of {path.stat().st_size / GIGABYTE:.2f} GB")
        for precision in args.precisions:
            command = [sys.executable, "-m", "benchmarks.loading_memory", "--load", path, "--precisions", precision]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            peak, end = (json.loads(done.stdout)[name] / GIGABYTE for name in ("peak", "end"))
            print(f"{precision:9} peak {peak:6.2f} GB   loaded {end:6.2f} GB   {peak / end:.2f}")


def shapes_of_layer() -> dict[str, tuple[int, ...]]:
    q_size, kv_size = NUM_HEADS * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM
    return {
        "attn_norm": (HIDDEN_SIZE,),
        "attn_q": (q_size, HIDDEN_SIZE),
        "attn_k": (kv_size, HIDDEN_SIZE),
        "attn_v": (kv_size, HIDDEN_SIZE),
        "attn_output": (HIDDEN_SIZE, q_size),
        "ffn_norm": (HIDDEN_SIZE,),
        "ffn_gate": (INTERMEDIATE_SIZE, HIDDEN_SIZE),
        "ffn_up": (INTERMEDIATE_SIZE, HIDDEN_SIZE),
        "ffn_down": (HIDDEN_SIZE, INTERMEDIATE_SIZE),
    }


def shapes(num_layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "token_embd.weight", (VOCAB_SIZE, HIDDEN_SIZE)
    yield "output_norm.weight", (HIDDEN_SIZE,)
    yield "output.weight", (VOCAB_SIZE, HIDDEN_SIZE)
    for layer in range(num_layers):
        for name, shape in shapes_of_layer().items():
            yield f"blk.{layer}.{name}.weight", shape


def num_bytes(shape: tuple[int, ...]) -> int:
    elements, size = gguf.GGML_QUANT_SIZES[Q8_0]
    return 4 * shape[0] if len(shape) == 1 else shape[0] * shape[1] // elements * size


def write_random(path: Path, size: int) -> None:
    """About `size` bytes, one tensor after the other."""
    outside = sum(num_bytes(shape) for _, shape in shapes(0))
    num_layers = max(1, round((size - outside) / sum(map(num_bytes, shapes_of_layer().values()))))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(8192)
    writer.add_embedding_length(HIDDEN_SIZE)
    writer.add_block_count(num_layers)
    writer.add_feed_forward_length(INTERMEDIATE_SIZE)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    row_elements, row_bytes = gguf.GGML_QUANT_SIZES[Q8_0]
    for name, shape in shapes(num_layers):
        if len(shape) == 1:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), num_bytes(shape))
        else:
            stored = (shape[0], shape[1] // row_elements * row_bytes)
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), num_bytes(shape), raw_dtype=Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    blocks = random_blocks(max(num_bytes(shape) for _, shape in shapes(1)))
    for _, shape in shapes(num_layers):
        writer.write_tensor_data(np.ones(shape, np.float32) if len(shape) == 1 else blocks[: num_bytes(shape)])
    writer.close()


def random_blocks(size: int) -> np.ndarray:
    """uint8 [size]: of each block a scale, and its 32 elements."""
    _, block_bytes = gguf.GGML_QUANT_SIZES[Q8_0]
    blocks = np.random.default_rng(0).integers(0, 256, (size // block_bytes, block_bytes), np.uint8)
    blocks[:, :2] = np.float16([1e-4]).view(np.uint8)
    return blocks.ravel()


def loaded(path: Path, quantize: str | None) -> dict[str, int]:
    before = of_process("VmRSS")
    model = load_model(describe_model(path), path, torch.bfloat16, torch.device("cpu"), quantize)
    model.pack_weights()
    return {"peak": of_process("VmHWM") - before, "end": of_process("VmRSS") - before}


def of_process(field: str) -> int:
    """In bytes."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


if __name__ == "__main__":
    main()
