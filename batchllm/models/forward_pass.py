"""The interface of a model to an engine and its runner."""

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
    """The dtype of keys, values and logits, and of weights and hidden states unless the model is in 8 bits."""
    device: torch.device

    @property
    def products(self) -> dict[str, str]:
        """How products are made, by shape and type of the matrix ("3072x576 float32"), for the figures; empty if there
        is no choice."""
        return {}

    def pack_weights(self) -> None:
        """Prepares the weights for many passes; called once, before the first."""

    def forward(self, step: Step, kv_cache: PagedKVCache, ops: Ops) -> Tensor:
        """Writes K and V of every row to its slot of every layer, and returns the hidden states of step.logit_rows (of
        all rows if that is None) after the last norm, [R, hidden_size].

        Layer i attends by `ops.attention(step.plans[kind_of_layer[i]], ...)`, with the scale, the soft cap and the
        sinks of its kind, once it has written its K and V; once the last has, the pass may go on with the logit rows
        alone, by logit_plans. Rows that pad a CUDA graph have no slot: their K and V are not written, and their
        results are not read. On a GPU a pass may be captured and replayed, so nothing in it may wait for the device.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden_size], some of the rows from forward(), -> [R, vocab_size]."""
