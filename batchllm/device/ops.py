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

    def norm_rotate_append(
        self,
        qkv: Tensor,
        norms: tuple[Tensor, Tensor] | None,
        angles: tuple[Tensor, Tensor],
        slots: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        *,
        eps: float,
    ) -> None:
        """Norms q and k of qkv [T, num_qo_heads + 2 num_kv_heads, D] by two weights [D] (or not at all), turns them by
        cos and sin, float32 [T, D / 2], and writes k and v to slots, int64 [T], of the pages. q stays in qkv; what
        stands there of k and v afterwards may be anything."""
        num_kv_heads = k_pages.shape[2]
        q, k, v = qkv.split((qkv.shape[1] - 2 * num_kv_heads, num_kv_heads, num_kv_heads), dim=1)
        if norms is not None:
            self.rms_norm(q, norms[0], eps=eps, out=q)
            self.rms_norm(k, norms[1], eps=eps, out=k)
        ext.rotate(qkv[:, :-num_kv_heads], *angles, num_threads=self.num_threads)
        ext.append_kv(k, v, slots, k_pages, v_pages, num_threads=self.num_threads)

    def silu_and_mul(self, gate_up: Tensor, *, out: Tensor) -> None:
        """out [T, size] = silu(gate) * up, of gate_up [T, 2 size]."""
        ext.silu_and_mul(gate_up, out=out, num_threads=self.num_threads)

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

    def norm_rotate_append(
        self,
        qkv: Tensor,
        norms: tuple[Tensor, Tensor] | None,
        angles: tuple[Tensor, Tensor],
        slots: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        *,
        eps: float,
    ) -> None:
        """A row whose slot is none of the pages' is not written."""
        q_norm, k_norm = norms or (None, None)
        ext.norm_rotate_append(
            qkv, *angles, slots, k_pages, v_pages, q_norm=q_norm, k_norm=k_norm, eps=eps, stream=self._stream()
        )

    def silu_and_mul(self, gate_up: Tensor, *, out: Tensor) -> None:
        ext.silu_and_mul(gate_up, out=out, stream=self._stream())

    def attention(self, plan: ext.DevicePlan, q: Tensor, k_pages: Tensor, v_pages: Tensor, *, out: Tensor) -> None:
        ext.attention(plan, q, k_pages, v_pages, out=out, lse=None, stream=self._stream())

    def argmax_and_lse(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return logits.argmax(dim=-1).int(), logits.float().logsumexp(dim=-1)

    def _stream(self) -> int:
        return int(torch.cuda.current_stream().cuda_stream)


Ops = CpuOps | GpuOps
