"""What an engine and its runner know of a model."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from batchllm.device.kv_cache import PagedKVCache
from batchllm.device.ops import Ops
from batchllm.device.step import Step
from batchllm.models.layer_spec import AttentionSpec


class ForwardPass(Protocol):
    """A model as one pass over the rows of a step. Layers that have keys and values are numbered from 0."""

    attention_kinds: tuple[AttentionSpec, ...]
    """The distinct specs of the layers, at least one. Step.plans and Step.logit_plans have a plan for each."""
    kind_of_layer: tuple[int, ...]
    """[num_layers] into attention_kinds. Layer i has kv_cache.k_pages[i] and v_pages[i]."""
    dtype: torch.dtype
    """Of keys, values and logits, and but for a model in 8 bits of weights and hidden states."""
    device: torch.device

    @property
    def products(self) -> dict[str, str]:
        """By shape and type of a matrix, "3072x576 float32", how products with it are made, for the figures; nothing
        where there is no choice."""
        return {}

    def pack_weights(self) -> None:
        """Prepares the weights for many passes; called once, before the first."""

    def forward(self, step: Step, kv_cache: PagedKVCache, ops: Ops) -> Tensor:
        """Writes K and V of every row to its slot of every layer, and returns the hidden states of step.logit_rows (of
        all rows where that is None) after the last norm, [R, hidden_size].

        Layer i attends by `ops.attention(step.plans[kind_of_layer[i]], ...)`, with the scale, the soft cap and the
        sinks of its kind, once it has written its K and V; once the last has, the pass may go on with the logit rows
        alone, by logit_plans. Rows that only fill a CUDA graph have no slot: their K and V are not written, and nobody
        reads what comes of them. On a GPU a pass may be captured and replayed, so nothing in it may wait for the
        device.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden_size], some of the rows that forward() gave, -> [R, vocab_size]."""
