"""The description of a decoder layer, for the forward pass, attention plans and estimates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import batchllm_ext as ext
from batchllm.models.rope import Rotation


@dataclass(frozen=True)
class AttentionSpec:
    """A kind of attention: layers whose specs are equal share one plan per step."""

    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    softmax_scale: float  # multiplies q·k
    window_left: int = -1  # positions before its own that a row sees; -1: all
    soft_cap: float = 0.0  # cap * tanh(score / cap); 0 is off
    has_sinks: bool = False  # one score per query head, for an extra key with v = 0

    @property
    def q_size(self) -> int:
        """Elements per row of q, and of attention's output."""
        return self.num_qo_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Elements per row of K, and of V."""
        return self.num_kv_heads * self.head_dim

    def sliding(self, window: int | None, max_model_len: int) -> AttentionSpec:
        """The same with attention over the last `window` positions, including its own; over all if there is no window,
        or if no context is longer."""
        return self if window is None or window >= max_model_len else replace(self, window_left=window - 1)


@dataclass(frozen=True)
class LayerSpec:
    """Attention, then a gated MLP, each on the normed hidden states and added to them."""

    attention: AttentionSpec
    rotation: Rotation | None  # of q and k; None: positions are not encoded
    intermediate_size: int
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # every head of q, and of k, is normed before the rotation

    def num_linear_parameters(self, hidden_size: int) -> int:
        """Weights that every row is multiplied with."""
        attention = 2 * (self.attention.q_size + self.attention.kv_size)
        return hidden_size * (attention + 3 * self.intermediate_size)

    def num_parameters(self, hidden_size: int) -> int:
        q_size, kv_size = self.attention.q_size, self.attention.kv_size
        norms = 2 * hidden_size + 2 * self.attention.head_dim * self.qk_norm
        biases = (q_size + 2 * kv_size) * self.qkv_bias + hidden_size * self.o_bias
        biases += (2 * self.intermediate_size + hidden_size) * self.mlp_bias
        return self.num_linear_parameters(hidden_size) + norms + biases


def widest_window(kinds: Sequence[AttentionSpec]) -> int:
    """window_left of the layers that see most; -1 where some see all."""
    windows = [kind.window_left for kind in kinds]
    return -1 if -1 in windows else max(windows)


def attention_plans(
    batch: ext.TokenBatch, kinds: Sequence[AttentionSpec], page_size: int, **options: Any
) -> tuple[ext.AttentionPlan, ...]:
    """One plan per kind of layer. options: further ones of ext.plan_attention, for the device."""
    return tuple(
        ext.plan_attention(
            batch,
            num_qo_heads=kind.num_qo_heads,
            num_kv_heads=kind.num_kv_heads,
            head_dim=kind.head_dim,
            window_left=kind.window_left,
            page_size=page_size,
            **options,
        )
        for kind in kinds
    )


def logit_plans(batch: ext.TokenBatch, plans: tuple[ext.AttentionPlan, ...]) -> tuple[ext.AttentionPlan, ...]:
    """Of the batch's plans, those for its output_rows; none if all rows need logits."""
    rows = batch.output_rows
    return () if len(rows) == batch.num_tokens else tuple(plan.for_rows(rows) for plan in plans)
