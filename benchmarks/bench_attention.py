"""Attention on shared prefixes: shared against per request in the same kernel, and against torch's SDPA and
FlexAttention.

    python benchmarks/bench_attention.py --json

Every shape is one layer of one decode step: `readers` requests with a common prefix and `own` tokens each. Results are
checked first, then the contestants take turns (A B C B C A ...), and the median of their times counts. Ceilings are
measured in the same run: float32 and bfloat16 matrix products (torch) and reading memory.

--flex adds FlexAttention. It is compiled for each shape, which takes half a minute, and brings OpenMP threads of its
own, which wait busily while others have their turn: what the others take is measured without it.

--device cuda runs the same shapes on a GPU, in bfloat16, against what is installed (attention_cuda.py).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import batchllm_ext

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.cases import Case, Inputs, decodes, prefix
from tests.reference import assert_close, attention_reference, from_bf16, to_bf16, tolerance

try:
    import torch
except ImportError:
    torch = None

# (prefix tokens, readers, own tokens)
SHAPES = [
    (0, 16, 512),
    (64, 16, 64),
    (256, 8, 64),
    (256, 32, 64),
    (1024, 16, 64),
    (2048, 64, 64),
    (4096, 16, 256),
]
QUICK_SHAPES = [(256, 8, 64), (1024, 16, 64)]
OURS = ("shared", "per_request")


def make_case(shape: tuple[int, int, int], options: argparse.Namespace) -> Case:
    prefix_tokens, readers, own = shape
    return Case(
        f"prefix {prefix_tokens}, {readers} readers, own {own}",
        decodes(prefix(prefix_tokens) if prefix_tokens else (), [own] * readers),
        num_qo_heads=options.num_qo_heads,
        num_kv_heads=options.num_kv_heads,
        head_dim=options.head_dim,
        page_size=16,
    )


class Ours:
    """attention() with plan and outputs made before."""

    def __init__(self, inputs: Inputs, options: argparse.Namespace, *, share: bool):
        self.plan = batchllm_ext.plan_attention(**inputs.plan_arguments, num_threads=options.threads, share=share)
        convert = to_bf16 if options.dtype == "bfloat16" else np.ascontiguousarray
        self.tensors = [convert(x) for x in (inputs.q, inputs.k_pages, inputs.v_pages)]
        self.out = np.empty(inputs.q.shape, np.float32)
        self.lse = np.empty(inputs.q.shape[:2], np.float32)
        self.dtype = options.dtype

    def __call__(self) -> np.ndarray:
        batchllm_ext.attention(self.plan, *self.tensors, out=self.out, lse=self.lse, dtype=self.dtype)
        return self.out


class TorchSdpa:
    """scaled_dot_product_attention over K and V that are already gathered: one dense call for equal lengths."""

    def __init__(self, inputs: Inputs, options: argparse.Namespace):
        dtype = getattr(torch, options.dtype)
        chains = [[link for link in span.links if inputs.segments[link].num_tokens] for span in inputs.spans]

        def gather(segments: list[np.ndarray]) -> torch.Tensor:  # [readers, num_kv_heads, num_keys, head_dim]
            rows = np.stack([np.concatenate([segments[link] for link in chain]) for chain in chains])
            return torch.from_numpy(rows).to(dtype).transpose(1, 2).contiguous()

        # The query heads of a KV head as rows: every key is visible, and nothing has to be expanded.
        case = inputs.case
        group_size = case.num_qo_heads // case.num_kv_heads
        q = inputs.q.reshape(len(chains), case.num_kv_heads, group_size, case.head_dim)
        self.q = torch.from_numpy(q).to(dtype)
        self.k, self.v = gather(inputs.segment_k), gather(inputs.segment_v)

    def __call__(self) -> np.ndarray:
        out = torch.nn.functional.scaled_dot_product_attention(self.q, self.k, self.v)
        return out.flatten(1, 2).float().numpy()


class TorchFlexAttention:
    """flex_attention over the prefix once and the own parts one after another; the mask says whose they are."""

    def __init__(self, inputs: Inputs, options: argparse.Namespace):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        segments = sorted({link for span in inputs.spans for link in span.links if inputs.segments[link].num_tokens})
        num_readers = len(inputs.spans)
        sees = torch.zeros(num_readers, len(segments), dtype=torch.bool)
        for reader, span in enumerate(inputs.spans):
            sees[reader, [segments.index(link) for link in span.links if link in segments]] = True
        num_tokens = torch.tensor([len(inputs.segment_k[segment]) for segment in segments])
        segment_of_key = torch.arange(len(segments)).repeat_interleave(num_tokens)

        def mask(batch: object, head: object, reader: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return sees[reader, segment_of_key[key]]

        dtype = getattr(torch, options.dtype)

        def heads_first(rows: np.ndarray) -> torch.Tensor:  # [1, num_heads, num_rows, head_dim]
            return torch.from_numpy(rows).to(dtype).transpose(0, 1)[None].contiguous()

        self.q = heads_first(inputs.q)
        self.k = heads_first(np.concatenate([inputs.segment_k[segment] for segment in segments]))
        self.v = heads_first(np.concatenate([inputs.segment_v[segment] for segment in segments]))
        self.mask = create_block_mask(mask, None, None, num_readers, len(segment_of_key), device="cpu")
        self.attend = torch.compile(flex_attention, dynamic=False)

    @torch.inference_mode()
    def __call__(self) -> np.ndarray:
        out = self.attend(self.q, self.k, self.v, block_mask=self.mask, enable_gqa=True)
        return out[0].transpose(0, 1).float().numpy()


def take_turns(contestants: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[order[0]]) < 6:
        for name in order:
            begin = time.perf_counter()
            contestants[name]()
            times[name].append(time.perf_counter() - begin)
        order.append(order.pop(0))  # whoever comes after another finds that one's data in the caches
    return {name: statistics.median(samples) for name, samples in times.items()}


def rounded(inputs: Inputs, dtype: str) -> Inputs:
    """What a kernel sees of these inputs in `dtype`."""
    if dtype == "bfloat16":
        inputs.q = from_bf16(to_bf16(inputs.q))
        inputs.segment_k = [from_bf16(to_bf16(k)) for k in inputs.segment_k]
        inputs.segment_v = [from_bf16(to_bf16(v)) for v in inputs.segment_v]
    return inputs


def measure(shape: tuple[int, int, int], options: argparse.Namespace) -> dict:
    inputs = rounded(make_case(shape, options).make_inputs(), options.dtype)
    contestants: dict[str, Callable] = {
        "shared": Ours(inputs, options, share=True),
        "per_request": Ours(inputs, options, share=False),
    }
    expected, _, max_score = attention_reference(inputs)
    for name, run in contestants.items():
        assert_close(name, run(), expected, tolerance(inputs, max_score, options.dtype))
    if torch is not None:
        contestants["torch_sdpa"] = TorchSdpa(inputs, options)
        if options.flex:
            torch.compiler.reset()
            contestants["torch_flex"] = TorchFlexAttention(inputs, options)
        for name in contestants.keys() - set(OURS):
            error = np.abs(contestants[name]() - expected).max()
            assert error < 0.05, f"{name}: error {error}"

    seconds = take_turns(contestants, options.seconds)
    result: dict = {"prefix": shape[0], "readers": shape[1], "own": shape[2]}
    for name in OURS:
        explained = contestants[name].plan.explain(kv_dtype=options.dtype)
        result[name] = {
            "us": seconds[name] * 1e6,
            "gflops": explained["flops"] / seconds[name] / 1e9,
            "kv_gb_per_s": explained["kv_bytes_read"] / seconds[name] / 1e9,
        }
    result["shared_vs_per_request"] = seconds["per_request"] / seconds["shared"]
    for name in [name for name in contestants if name not in OURS]:
        result[name] = {"us": seconds[name] * 1e6}
        result[f"shared_vs_{name}"] = seconds[name] / seconds["shared"]
    return result


def ceilings(options: argparse.Namespace) -> dict:
    """What this machine gives now: GFLOP/s of a matrix product, GB/s of reading memory in one thread."""
    values = np.ones(1 << 26, np.float32)
    result = {"read_gb_per_s": values.nbytes / take_turns({"read": values.max}, 0.3)["read"] / 1e9}
    if torch is None:
        return result
    for dtype in ("float32", "bfloat16"):
        a = torch.randn(1024, 1024).to(getattr(torch, dtype))
        seconds = take_turns({"product": lambda a=a: a @ a}, 0.3)["product"]
        result[f"{dtype}_gflops"] = 2 * 1024**3 / seconds / 1e9
    return result


def main_on_gpu(options: argparse.Namespace) -> None:
    from benchmarks import attention_cuda

    report = {"device": torch.cuda.get_device_name(), **vars(options), "shapes": []}
    for shape in QUICK_SHAPES if options.quick else SHAPES:
        case = make_case(shape, options)
        result = attention_cuda.measure(case.make_inputs(poison=0.0), options)
        report["shapes"].append({"prefix": shape[0], "readers": shape[1], "own": shape[2], **result})
        if not options.json:
            attention_cuda.print_shape(case.name, result)
    if options.json:
        print(json.dumps(report))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--num-qo-heads", type=int, default=32)
    parser.add_argument("--num-kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each shape")
    parser.add_argument("--flex", action="store_true", help="with torch's FlexAttention")
    parser.add_argument("--repeats", type=int, default=50, help="calls of each contestant on a GPU")
    parser.add_argument("--quick", action="store_true", help="two shapes only")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.device == "cuda":
        if torch is None or not torch.cuda.is_available():
            parser.error("--device cuda: torch finds no GPU")
        return main_on_gpu(options)
    if torch is not None and options.threads:
        torch.set_num_threads(options.threads)

    report = {"isa": batchllm_ext.cpu_isa(), **vars(options), "ceilings": ceilings(options), "shapes": []}
    for shape in QUICK_SHAPES if options.quick else SHAPES:
        report["shapes"].append(measure(shape, options))
        if not options.json:
            print_shape(report["shapes"][-1])
    gains = [shape["shared_vs_per_request"] for shape in report["shapes"] if shape["prefix"] >= 256]
    report["score"] = math.exp(statistics.fmean(math.log(gain) for gain in gains))
    if options.json:
        print(json.dumps(report))
    else:
        print(f"ceilings: {report['ceilings']}")
        print(f"geometric mean of shared against per request at prefixes of at least 256: {report['score']:.2f}x")


def print_shape(shape: dict) -> None:
    line = f"prefix {shape['prefix']:5} readers {shape['readers']:3} own {shape['own']:4}:"
    for name in OURS:
        ours = shape[name]
        line += f"  {name} {ours['us']:8.0f} us {ours['gflops']:6.1f} GFLOP/s {ours['kv_gb_per_s']:5.1f} GB/s"
    line += f"  {shape['shared_vs_per_request']:.2f}x"
    for name in [name for name in shape if name.startswith("torch_")]:
        line += f"  {name} {shape[name]['us']:8.0f} us {shape[f'shared_vs_{name}']:.2f}x"
    print(line, flush=True)


if __name__ == "__main__":
    main()
