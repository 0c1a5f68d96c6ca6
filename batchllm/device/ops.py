"""The operations between a step's matrix products, and on its logits: one class per device, chosen once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

import batchllm_ext as ext


@dataclass(frozen=True)
class DrawParams:
    """How each row's token is drawn: the columns of `ext.sample`, on the device of the logits."""

    temperature: Tensor  # float32 [T]; 0 is greedy
    top_k: Tensor  # int32 [T]; 0 is off
    top_p: Tensor  # float32 [T]; 1 is off
    min_p: Tensor  # float32 [T]; 0 is off
    uniform: Tensor  # float64 [T], in [0, 1)

    @classmethod
    def greedy(cls, num_rows: int, device: torch.device) -> DrawParams:
        off = torch.zeros(num_rows, device=device)
        return cls(off, off.int(), off, off, off.double())

    def __len__(self) -> int:
        return len(self.temperature)

    def take(self, rows: slice) -> DrawParams:
        """The parameters of some of the rows."""
        columns = self.temperature, self.top_k, self.top_p, self.min_p, self.uniform
        return DrawParams(*(column[rows] for column in columns))


DRAW_INTS = 3  # per row of a Draw


@dataclass(frozen=True)
class Draw:
    """Where drawn tokens are written, on the device of the logits."""

    buffer: Tensor  # int32 [DRAW_INTS T]: the other three, one after another
    token_ids: Tensor  # int32 [T]
    logprobs: Tensor  # float32 [T], under the logits before temperature and filters; not finite if one of them is not
    lse: Tensor  # float32 [T], of the logits

    @classmethod
    def into(cls, buffer: Tensor) -> Draw:
        """buffer: int32 [DRAW_INTS T]"""
        token_ids, logprobs, lse = buffer.split_with_sizes([len(buffer) // DRAW_INTS] * DRAW_INTS)
        return cls(buffer, token_ids, logprobs.view(torch.float32), lse.view(torch.float32))

    @classmethod
    def of(cls, num_rows: int, device: torch.device) -> Draw:
        return cls.into(torch.empty(DRAW_INTS * num_rows, dtype=torch.int32, device=device))

    def __len__(self) -> int:
        return len(self.token_ids)

    def take(self, rows: slice) -> Draw:
        """The places of some of the rows, in the same buffer."""
        return Draw(self.buffer, self.token_ids[rows], self.logprobs[rows], self.lse[rows])


class Ops(Protocol):
    """Everything except matrix products that a forward pass and a sampler need from a device.

    T = rows, H = heads, D = head_dim. Tensors are on the device and have the model's dtype unless stated otherwise.
    Everything is computed in float32 and rounded once. A call may return before the device is done; the next one on the
    device sees its result.
    """

    def rms_norm(self, x: Tensor, weight: Tensor, *, eps: float, out: Tensor, delta: Tensor | None = None) -> None:
        """out = x / sqrt(mean(x^2) + eps) * weight over the last dimension; out may be x. With delta, x += delta
        before."""

    def norm_rotate_append(
        self,
        qkv: Tensor,
        norms: tuple[Tensor, Tensor] | None,
        angles: tuple[Tensor, Tensor] | None,
        slots: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        *,
        eps: float,
    ) -> None:
        """Norms q and k of qkv [T, num_qo_heads + 2 num_kv_heads, D] by two weights [D] (or not at all), rotates them
        by cos and sin, float32 [T, D / 2] (or not at all), and writes k and v to slots, int64 [T], of the pages. q
        stays in qkv; k and v in it are undefined afterwards. A slot outside the pages is an error on a CPU; on a GPU
        nothing is written for its row."""

    def append_kv(self, k: Tensor, v: Tensor, slots: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
        """Writes k and v [T, num_kv_heads, D] to their slots as norm_rotate_append does; for a forward pass that does
        its own norms and rotations."""

    def silu_and_mul(self, gate_up: Tensor, *, out: Tensor) -> None:
        """out [T, size] = silu(gate) * up, from gate_up [T, 2 size]."""

    def attention(
        self,
        plan: Any,
        q: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        *,
        out: Tensor,
        softmax_scale: float | None = None,
        soft_cap: float = 0.0,
        sinks: Tensor | None = None,
    ) -> None:
        """Attention of one layer, over the keys that `plan`, of the layer's kind, lets each row see.

        plan: of Step.plans or Step.logit_plans. out, q: [T, num_qo_heads, D]. k_pages, v_pages: [num_pages, page_size,
        num_kv_heads, D]. softmax_scale: 1 / sqrt(D) by default. soft_cap: cap * tanh(score / cap); 0 is off.
        sinks: float32 [num_qo_heads], scores of one more key with v = 0.
        """

    def sample(
        self,
        logits: Tensor,
        params: DrawParams,
        ruled: tuple[Tensor, Tensor] | None = None,
        allowed: tuple[Tensor, Tensor] | None = None,
        *,
        out: Draw,
    ) -> None:
        """Draws a token for each row of logits [T, vocab_size].

        ruled: logits to draw some rows' tokens from instead, float32 [C, vocab_size], and each row's index into them,
        int32 [T], -1 for none.
        allowed: bits of the tokens that may be drawn in some rows, int32 [C, ceil(vocab_size / 32)], and each row's
        index into them, int32 [T], -1 for none.
        """


@dataclass(frozen=True)
class CpuOps(Ops):
    """batchllm_ext's kernels. Plans are ext.AttentionPlan."""

    num_threads: int = 0  # 0 is OpenMP's number

    def rms_norm(self, x: Tensor, weight: Tensor, *, eps: float, out: Tensor, delta: Tensor | None = None) -> None:
        ext.rms_norm(x, weight, eps=eps, out=out, delta=delta, num_threads=self.num_threads)

    def norm_rotate_append(
        self,
        qkv: Tensor,
        norms: tuple[Tensor, Tensor] | None,
        angles: tuple[Tensor, Tensor] | None,
        slots: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        *,
        eps: float,
    ) -> None:
        k, v = _norm_q_and_k(self, qkv, norms, k_pages.shape[2], eps)
        if angles is not None:
            ext.rotate(qkv[:, : -v.shape[1]], *angles, num_threads=self.num_threads)
        self.append_kv(k, v, slots, k_pages, v_pages)

    def append_kv(self, k: Tensor, v: Tensor, slots: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
        ext.append_kv(k, v, slots, k_pages, v_pages, num_threads=self.num_threads)

    def silu_and_mul(self, gate_up: Tensor, *, out: Tensor) -> None:
        ext.silu_and_mul(gate_up, out=out, num_threads=self.num_threads)

    def attention(
        self,
        plan: Any,
        q: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        *,
        out: Tensor,
        softmax_scale: float | None = None,
        soft_cap: float = 0.0,
        sinks: Tensor | None = None,
    ) -> None:
        ext.attention(
            plan,
            q,
            k_pages,
            v_pages,
            out=out,
            lse=None,
            softmax_scale=softmax_scale,
            soft_cap=soft_cap,
            sinks=sinks,
            num_threads=self.num_threads,
        )

    def sample(
        self,
        logits: Tensor,
        params: DrawParams,
        ruled: tuple[Tensor, Tensor] | None = None,
        allowed: tuple[Tensor, Tensor] | None = None,
        *,
        out: Draw,
    ) -> None:
        _sample(logits, params, ruled, allowed, out, num_threads=self.num_threads)


class GpuOps(Ops):
    """On torch's current stream: batchllm_ext's kernels. Plans are ext.DevicePlan."""

    def rms_norm(self, x: Tensor, weight: Tensor, *, eps: float, out: Tensor, delta: Tensor | None = None) -> None:
        ext.rms_norm(x, weight, eps=eps, out=out, delta=delta, stream=self._stream())

    def norm_rotate_append(
        self,
        qkv: Tensor,
        norms: tuple[Tensor, Tensor] | None,
        angles: tuple[Tensor, Tensor] | None,
        slots: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        *,
        eps: float,
    ) -> None:
        if angles is None:
            self.append_kv(*_norm_q_and_k(self, qkv, norms, k_pages.shape[2], eps), slots, k_pages, v_pages)
            return
        q_norm, k_norm = norms or (None, None)
        ext.norm_rotate_append(
            qkv, *angles, slots, k_pages, v_pages, q_norm=q_norm, k_norm=k_norm, eps=eps, stream=self._stream()
        )

    def append_kv(self, k: Tensor, v: Tensor, slots: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
        ext.append_kv(k, v, slots, k_pages, v_pages, stream=self._stream())

    def silu_and_mul(self, gate_up: Tensor, *, out: Tensor) -> None:
        ext.silu_and_mul(gate_up, out=out, stream=self._stream())

    def attention(
        self,
        plan: Any,
        q: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        *,
        out: Tensor,
        softmax_scale: float | None = None,
        soft_cap: float = 0.0,
        sinks: Tensor | None = None,
    ) -> None:
        ext.attention(
            plan,
            q,
            k_pages,
            v_pages,
            out=out,
            lse=None,
            softmax_scale=softmax_scale,
            soft_cap=soft_cap,
            sinks=sinks,
            stream=self._stream(),
        )

    def sample(
        self,
        logits: Tensor,
        params: DrawParams,
        ruled: tuple[Tensor, Tensor] | None = None,
        allowed: tuple[Tensor, Tensor] | None = None,
        *,
        out: Draw,
    ) -> None:
        _sample(logits, params, ruled, allowed, out, stream=self._stream())

    def _stream(self) -> int:
        return int(torch.cuda.current_stream().cuda_stream)


def _norm_q_and_k(
    ops: Ops, qkv: Tensor, norms: tuple[Tensor, Tensor] | None, num_kv_heads: int, eps: float
) -> tuple[Tensor, Tensor]:
    """In place; returns k and v, views of qkv."""
    q, k, v = qkv.split((qkv.shape[1] - 2 * num_kv_heads, num_kv_heads, num_kv_heads), dim=1)
    if norms is not None:
        ops.rms_norm(q, norms[0], eps=eps, out=q)
        ops.rms_norm(k, norms[1], eps=eps, out=k)
    return k, v


def _sample(
    logits: Tensor,
    params: DrawParams,
    ruled: tuple[Tensor, Tensor] | None,
    allowed: tuple[Tensor, Tensor] | None,
    out: Draw,
    **where: int,
) -> None:
    ruled_logits, ruled_rows = ruled or (None, None)
    masks, allowed_rows = allowed or (None, None)
    ext.sample(
        logits,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        uniform=params.uniform,
        ruled_logits=ruled_logits,
        ruled_rows=ruled_rows,
        allowed=masks,
        allowed_rows=allowed_rows,
        token_ids=out.token_ids,
        logprobs=out.logprobs,
        lse=out.lse,
        **where,
    )
