"""What a layer is, as its plan and its kernels need to know it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionSpec:
    """A kind of attention: layers whose specs are equal share one plan per step."""

    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    softmax_scale: float  # multiplies q·k
    window_left: int = -1  # positions before its own that a row sees; -1 all
    soft_cap: float = 0.0  # cap * tanh(score / cap); 0 is off
    has_sinks: bool = False  # a score per query head of one more key with v = 0
