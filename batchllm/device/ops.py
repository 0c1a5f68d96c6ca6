"""What a step does between its matrix products, and what sampling asks of logits: one class a device, chosen once.

T = rows, H = heads, D = head_dim. Everything is computed in float32 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import batchllm_ext as ext


@dataclass(frozen=True)
class CpuOps:
    """batchllm_ext's kernels."""

    num_threads: int = 0  # 0 is OpenMP's number

    def rms_norm(self, x: Tensor, weight: Tensor, *, eps: float, out: Tensor, delta: Tensor | None = None) -> None:
        """out = x / sqrt(mean(x^2) + eps) * weight over the last dimension; out may be x. With delta, x += delta
        before."""
        ext.rms_norm(x, weight, eps=eps, out=out, delta=delta, num_threads=self.num_threads)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Rotary embedding of x [T, H, D] in place; cos, sin float32 [T, D / 2]."""
        ext.rotate(x, cos, sin, num_threads=self.num_threads)

    def silu_and_mul(self, gate_up: Tensor, *, out: Tensor) -> None:
        """out [T, size] = silu(gate) * up, of gate_up [T, 2 size]."""
        ext.silu_and_mul(gate_up, out=out, num_threads=self.num_threads)

    def append_kv(self, k: Tensor, v: Tensor, slots: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
        """Writes k, v [T, num_kv_heads, D] to slots, int64 [T], of the pages."""
        ext.append_kv(k, v, slots, k_pages, v_pages, num_threads=self.num_threads)

    def attention(self, plan: ext.AttentionPlan, q: Tensor, k_pages: Tensor, v_pages: Tensor, *, out: Tensor) -> None:
        """out, q: [T, num_qo_heads, D]."""
        ext.attention(plan, q, k_pages, v_pages, out=out, lse=None, num_threads=self.num_threads)

    def argmax_and_lse(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of logits [T, vocab_size] int32 [T], the largest's index (the first of equals), and float32 [T], the log of
        the sum of exponentials."""
        token_ids = torch.empty(len(logits), dtype=torch.int32)
        lse = torch.empty(len(logits))
        ext.argmax_and_lse(logits, token_ids=token_ids, lse=lse, num_threads=self.num_threads)
        return token_ids, lse


class GpuOps:
    """The same on a GPU, on torch's current stream: batchllm_ext's kernels, and plain torch for the logits."""

    def rms_norm(self, x: Tensor, weight: Tensor, *, eps: float, out: Tensor, delta: Tensor | None = None) -> None:
        ext.rms_norm(x, weight, eps=eps, out=out, delta=delta, stream=self._stream())

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> None:
        ext.rotate(x, cos, sin, stream=self._stream())

    def silu_and_mul(self, gate_up: Tensor, *, out: Tensor) -> None:
        ext.silu_and_mul(gate_up, out=out, stream=self._stream())

    def append_kv(self, k: Tensor, v: Tensor, slots: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
        """A row whose slot is none of the pages' is not written."""
        ext.append_kv(k, v, slots, k_pages, v_pages, stream=self._stream())

    def attention(self, plan: ext.DevicePlan, q: Tensor, k_pages: Tensor, v_pages: Tensor, *, out: Tensor) -> None:
        ext.attention(plan, q, k_pages, v_pages, out=out, lse=None, stream=self._stream())

    def argmax_and_lse(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return logits.argmax(dim=-1).int(), logits.float().logsumexp(dim=-1)

    def _stream(self) -> int:
        return int(torch.cuda.current_stream().cuda_stream)


Ops = CpuOps | GpuOps
