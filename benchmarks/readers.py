"""Attention of 1 to 256 readers on one prefix: time per reader, bytes of KV read, and what reads a request's own part.

    python -m benchmarks.readers -o docs/results

One layer of one decode step in bfloat16. The prefix part alone: for each prefix and number of readers the plan that
shares and the one that does not take turns. KV lies in as many copies as it takes to leave the L3 cache, so that each
call finds it in memory, as a forward pass does. Next to them: the rate of torch's bfloat16 product at the shapes of a
layer (ceilings.py) and of reading memory, in the same run. The own part is measured where its KV is at least four
times the L3 cache. -o DIR writes readers.csv and readers.png.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

import batchllm_ext as ext
from benchmarks.ceilings import best_s, gflop, layer_weights, linear_s

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from batchllm.models.config import ModelConfig
from batchllm.models.layer_spec import AttentionSpec

PREFIXES = (256, 1024, 2048, 8192)
READERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
OWN_READERS, OWN_TOKENS = 64, 2048
PAGE_SIZE = 16
L3_BYTES = 32 << 20
GEMM_ROWS = 2048


class Decode:
    """`readers` decodes, all on one prefix and nothing else, or, with `prefix` 0, each on `own` tokens of its own."""

    def __init__(self, prefix: int, readers: int, own: int, heads: AttentionSpec) -> None:
        pages_of_prefix, pages_of_own = -(-prefix // PAGE_SIZE), -(-own // PAGE_SIZE)
        num_pages = pages_of_prefix + readers * pages_of_own
        segments = [(prefix, pages_of_prefix)] if prefix else [(own, pages_of_own)] * readers
        links = [0] * readers if prefix else range(readers)
        self.plan_arguments: dict[str, Any] = {
            "span_indptr": np.arange(readers + 1, dtype=np.int32),
            "span_begin": np.full(readers, prefix + own - 1, np.int32),
            "link_indptr": np.arange(readers + 1, dtype=np.int32),
            "link_segment": np.array(links, np.int32),
            "segment_page_indptr": np.cumsum([0, *(pages for _, pages in segments)]).astype(np.int32),
            "segment_page_ids": np.arange(num_pages, dtype=np.int32),
            "segment_begin": np.zeros(len(segments), np.int32),
            "segment_num_tokens": np.array([tokens for tokens, _ in segments], np.int32),
            "num_qo_heads": heads.num_qo_heads,
            "num_kv_heads": heads.num_kv_heads,
            "head_dim": heads.head_dim,
            "page_size": PAGE_SIZE,
        }
        self.kv_bytes = 2 * 2 * num_pages * PAGE_SIZE * heads.kv_size
        self.q = torch.randn(readers, heads.num_qo_heads, heads.head_dim).bfloat16()
        self.out = torch.empty_like(self.q)
        layers = 4 * L3_BYTES // self.kv_bytes + 1
        pages = torch.randn(2, num_pages, PAGE_SIZE, heads.num_kv_heads, heads.head_dim).bfloat16()
        self.kv = [pages.clone() for _ in range(layers)]

    def seconds(self, threads: int, shares: tuple[bool, ...], seconds: float) -> list[float]:
        """Median time of a call for each way to plan, in turns; their results are compared first."""
        plans = [ext.plan_attention(**self.plan_arguments, num_threads=threads, share=share) for share in shares]
        outputs = [
            ext.attention(plan, self.q, *self.kv[0], out=torch.empty_like(self.q), num_threads=threads)[0]
            for plan in plans
        ]
        for output in outputs[1:]:
            torch.testing.assert_close(output, outputs[0], rtol=2**-6, atol=2**-6)
        times: list[list[float]] = [[] for _ in plans]
        end = time.perf_counter() + seconds
        call = 0
        while time.perf_counter() < end or call < 7:
            for plan, samples in zip(plans, times, strict=True):
                k_pages, v_pages = self.kv[call % len(self.kv)]
                begin = time.perf_counter()
                ext.attention(plan, self.q, k_pages, v_pages, out=self.out, num_threads=threads)
                samples.append(time.perf_counter() - begin)
                call += 1
        return [statistics.median(samples) for samples in times]


def measure(model: ModelConfig, threads: int, seconds: float) -> list[dict[str, float]]:
    weights, heads = layer_weights(model).values(), model.layers[0].attention
    gemm = sum(gflop(GEMM_ROWS, w) for w in weights) / sum(linear_s(GEMM_ROWS, w, "bfloat16") for w in weights)
    memory = torch.ones(1 << 26)
    ceilings = {"gemm_gflops": gemm, "read_gb_per_s": memory.nbytes / best_s(memory.sum) / 1e9}
    rows = []
    for prefix in PREFIXES:
        for readers in READERS:
            decode = Decode(prefix, readers, 0, heads)
            shared, alone = decode.seconds(threads, (True, False), seconds)
            flop = 4 * heads.q_size * readers * prefix
            kv_bytes = 4 * heads.kv_size * prefix
            rows.append(row("prefix", prefix, readers, shared, alone, flop, kv_bytes, ceilings))
            print_row(rows[-1])
    decode = Decode(0, OWN_READERS, OWN_TOKENS, heads)
    (own,) = decode.seconds(threads, (False,), 4 * seconds)
    flop = 4 * heads.q_size * OWN_READERS * OWN_TOKENS
    rows.append(row("own", OWN_TOKENS, OWN_READERS, own, own, flop, decode.kv_bytes, ceilings))
    print_row(rows[-1])
    return rows


def row(
    part: str, tokens: int, readers: int, s: float, alone_s: float, flop: float, kv_bytes: float, ceilings: dict
) -> dict[str, Any]:
    return {
        "part": part,
        "tokens": tokens,
        "readers": readers,
        "us": round(s * 1e6, 1),
        "us_a_reader": round(s * 1e6 / readers, 3),
        "per_request_us": round(alone_s * 1e6, 1),
        "gflops": round(flop / s / 1e9, 1),
        "kv_bytes": int(kv_bytes),
        "kv_gb_per_s": round(kv_bytes / s / 1e9, 2),
        **{name: round(value, 1) for name, value in ceilings.items()},
    }


def print_row(row: dict[str, Any]) -> None:
    print(
        f"{row['part']:6} {row['tokens']:5} tokens {row['readers']:3} readers: {row['us']:9.1f} us, "
        f"{row['us_a_reader']:8.3f} a reader, {row['per_request_us'] / row['us']:5.2f}x per request, "
        f"{row['gflops']:6.1f} of {row['gemm_gflops']:.0f} GFLOP/s, {row['kv_gb_per_s']:5.1f} of "
        f"{row['read_gb_per_s']:.0f} GB/s",
        flush=True,
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(5.5, 3.4))
    for number, prefix in enumerate(PREFIXES):
        of_prefix = [row for row in rows if row["part"] == "prefix" and row["tokens"] == prefix]
        readers = [row["readers"] for row in of_prefix]
        color = f"C{number}"
        axes.plot(readers, [row["us_a_reader"] for row in of_prefix], "o-", color=color, label=f"{prefix:,} tokens")
        alone = [row["per_request_us"] / row["readers"] for row in of_prefix]
        axes.plot(readers, alone, ":", color=color)
    axes.set(xscale="log", yscale="log", xlabel="readers of one prefix", ylabel="us a reader (dotted: per request)")
    axes.set_xticks(READERS, [str(count) for count in READERS])
    axes.minorticks_off()
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"), help="for its shape")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.3, help="for each shape")
    parser.add_argument("-o", "--output", type=Path, help="directory for readers.csv and readers.png")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
    rows = measure(ModelConfig.from_directory(options.model), options.threads, options.seconds)
    if options.output:
        with (options.output / "readers.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        plot(rows, options.output / "readers.png")


if __name__ == "__main__":
    main()
