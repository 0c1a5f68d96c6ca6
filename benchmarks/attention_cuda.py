"""The shapes of bench_attention.py on a GPU: ours, FlashInfer's cascade and paged decode, FlashAttention's decode.

Nothing in here has run yet: it was written without a GPU. A contestant that is not installed is left out. Every result
is checked first; then the contestants take turns. The L2 cache is overwritten before each call, which also gives the
host the time to put the call behind it, so that launches are not what is measured.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import batchllm_ext
from tests.cases import Inputs
from tests.gpu import GpuAttention, on_gpu, plan_for_gpu
from tests.simt.backend import rounded
from tests.simt.precision import Law

L2_BYTES = 256 << 20  # more than any
WORKSPACE_BYTES = 256 << 20


class Ours:
    def __init__(self, inputs: Inputs, *, share: bool):
        self.plan = plan_for_gpu(inputs, share=share)
        self.attention = GpuAttention(inputs, "bfloat16", self.plan)
        self.attention.upload(inputs, self.plan)

    def __call__(self) -> torch.Tensor:
        self.attention.run()
        return self.attention.out


def pages_of(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    return on_gpu(inputs.k_pages, "bfloat16"), on_gpu(inputs.v_pages, "bfloat16")


def cuda_ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


def page_table(inputs: Inputs, chains: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """indptr, page ids and tokens in the last page of chains of segments, whose pages are full but for the last."""
    page_size, arrays = inputs.case.page_size, inputs.arrays
    indptr, page_ids, last = [0], [], []
    for chain in chains:
        for link in chain:
            begin, end = arrays["segment_page_indptr"][link : link + 2]
            page_ids += arrays["segment_page_ids"][begin:end].tolist()
        indptr.append(len(page_ids))
        assert all(inputs.segments[link].num_tokens % page_size == 0 for link in chain[:-1])
        last.append((inputs.segments[chain[-1]].num_tokens - 1) % page_size + 1)
    return cuda_ints(indptr), cuda_ints(page_ids), cuda_ints(last)


def chains_of(inputs: Inputs) -> list[list[int]]:
    return [[link for link in span.links if inputs.segments[link].num_tokens] for span in inputs.spans]


class FlashInferCascade:
    """One prefix for all, then each request's own part."""

    def __init__(self, inputs: Inputs):
        import flashinfer

        case, chains = inputs.case, chains_of(inputs)
        self.q, self.pages = on_gpu(inputs.q, "bfloat16"), pages_of(inputs)
        shared = [chains[0][:-1]] if len(chains[0]) > 1 else []
        tables = [page_table(inputs, level) for level in (shared, [chain[-1:] for chain in chains]) if level]
        row_indptrs = [cuda_ints([0, len(chains)])] * len(shared) + [cuda_ints(list(range(len(chains) + 1)))]
        workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")
        self.wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(len(tables), workspace, "NHD")
        self.wrapper.plan(
            row_indptrs,
            *([table[part] for table in tables] for part in range(3)),
            case.num_qo_heads,
            case.num_kv_heads,
            case.head_dim,
            case.page_size,
            q_data_type=torch.bfloat16,
        )

    def __call__(self) -> torch.Tensor:
        return self.wrapper.run(self.q, self.pages)


class FlashInferDecode:
    """Every request reads its whole chain."""

    def __init__(self, inputs: Inputs):
        import flashinfer

        case = inputs.case
        self.q, self.pages = on_gpu(inputs.q, "bfloat16"), pages_of(inputs)
        workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")
        self.wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
        self.wrapper.plan(
            *page_table(inputs, chains_of(inputs)),
            case.num_qo_heads,
            case.num_kv_heads,
            case.head_dim,
            case.page_size,
            q_data_type=torch.bfloat16,
            data_type=torch.bfloat16,
        )

    def __call__(self) -> torch.Tensor:
        return self.wrapper.run(self.q, self.pages)


class FlashAttentionDecode:
    """Every request reads its whole chain, which lies in one piece: its pages have 256 tokens at least."""

    def __init__(self, inputs: Inputs):
        from flash_attn import flash_attn_with_kvcache

        self.run = flash_attn_with_kvcache

        def gather(segments: list[np.ndarray]) -> torch.Tensor:  # [readers, num_keys, num_kv_heads, head_dim]
            rows = [np.concatenate([segments[link] for link in chain]) for chain in chains_of(inputs)]
            return on_gpu(np.stack(rows), "bfloat16")

        self.q = on_gpu(inputs.q, "bfloat16")[:, None]
        self.k, self.v = gather(inputs.segment_k), gather(inputs.segment_v)
        self.num_keys = cuda_ints([self.k.shape[1]] * len(self.k))

    def __call__(self) -> torch.Tensor:
        return self.run(self.q, self.k, self.v, cache_seqlens=self.num_keys)[:, 0]


def installed(inputs: Inputs) -> dict[str, Callable[[], torch.Tensor]]:
    peers: dict[str, Callable[[], torch.Tensor]] = {}
    for name, make in (
        ("flashinfer_cascade", FlashInferCascade),
        ("flashinfer_decode", FlashInferDecode),
        ("flash_attention", FlashAttentionDecode),
    ):
        try:
            peers[name] = make(inputs)
        except ImportError:
            continue
    return peers


def take_turns(contestants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each."""
    flushed = torch.empty(L2_BYTES, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for _ in range(repeats):
        for name in order:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flushed.zero_()
            begin.record()
            contestants[name]()
            end.record()
            torch.cuda.synchronize()
            times[name].append(begin.elapsed_time(end) / 1e3)
        order.append(order.pop(0))
    return {name: statistics.median(samples) for name, samples in times.items()}


def peaks_of_gpu() -> dict[str, float] | None:
    """Those of the GPU at hand, where we have them."""
    gpu = torch.cuda.get_device_name()
    return next((peaks for name, peaks in batchllm_ext.gpu_peaks().items() if name.split()[0] in gpu), None)


def measure(inputs: Inputs, options: argparse.Namespace) -> dict[str, Any]:
    """Of each contestant microseconds, and of ours the shares of the device's peaks and what the roofline predicts."""
    inputs = rounded(inputs, "bfloat16")
    contestants: dict[str, Any] = {"shared": Ours(inputs, share=True), "per_request": Ours(inputs, share=False)}
    contestants |= installed(inputs)
    law = Law(inputs, "bfloat16")
    for name, run in contestants.items():
        error = np.abs(run().float().cpu().numpy() - law.out).max()
        bound = law.out_bound if name in ("shared", "per_request") else 0.05
        assert error <= bound, f"{name}: error {error}, bound {bound}"
    seconds = take_turns(contestants, options.repeats)
    result: dict[str, Any] = {name: {"us": 1e6 * value} for name, value in seconds.items()}
    peaks = peaks_of_gpu()
    for name in ("shared", "per_request"):
        plan = contestants[name].plan
        explained = plan.explain(kv_dtype="bfloat16")
        if peaks is not None:
            result[name] |= {
                "share_of_bandwidth": explained["kv_bytes_read"] / seconds[name] / peaks["bytes_per_s"],
                "share_of_flops": explained["flops"] / seconds[name] / peaks["flops_per_s"],
                "predicted_us": 1e6 * plan.predict_seconds(**peaks)["plan"],
            }
    return result


def print_shape(name: str, result: dict[str, Any]) -> None:
    print(name)
    for contestant, figures in result.items():
        line = f"  {contestant:20} {figures['us']:9.1f} us  {figures['us'] / result['shared']['us']:6.2f}x"
        if "share_of_bandwidth" in figures:
            line += f"  {figures['share_of_bandwidth']:5.1%} of bandwidth  {figures['share_of_flops']:5.1%} of FLOP/s"
            line += f"  (prediction {figures['predicted_us']:.1f} us)"
        print(line, flush=True)
