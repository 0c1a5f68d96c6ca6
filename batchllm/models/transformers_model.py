"""A model on transformers' own modules: one pass over the rows of a step, which the modules see as one sequence.

T = rows of the step. The modules see [1, T] tokens at their positions and no cache. Only attention, which reads and
writes our pages by our plans, separates the requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from batchllm.device.kv_cache import PagedKVCache
from batchllm.device.linear import name_of, ways_of
from batchllm.device.ops import Ops
from batchllm.device.step import Step
from batchllm.models.fields import Unsupported
from batchllm.models.forward_pass import ForwardPass
from batchllm.models.transformers_attention import AttentionCall, hand_attention_to
from batchllm.models.transformers_check import PackedCheck
from batchllm.models.transformers_config import TransformersConfig, reason
from batchllm.models.transformers_modules import Pass
from batchllm.models.transformers_replacement import replace_modules
from batchllm.models.transformers_weights import load_weights
from batchllm.models.weights import WeightReader


class ModulesPass(ForwardPass):
    """The forward pass over a Step by the modules of a model, once it hands attention to `_attend`."""

    def __init__(self, config: TransformersConfig, model: PreTrainedModel, dtype: torch.dtype) -> None:
        self.attention_kinds, self.kind_of_layer = config.attention_kinds, config.kind_of_layer
        self.dtype, self.device = dtype, model.device
        self._model = model
        self._base: Any = model.base_model
        self._given = GivenHidden()
        self._layers: dict[nn.Module, int] = {}  # in the order of their calls
        self._sinks: dict[int, Tensor] = {}  # float32 [num_qo_heads], by layer
        self._pass = Pass()

    def forward(self, step: Step, kv_cache: PagedKVCache, ops: Ops) -> Tensor:
        self._step, self._kv_cache = step, kv_cache
        self._pass.ops, self._pass.rows = ops, step.logit_rows
        token_ids, positions = step.token_ids[None].long(), step.positions[None].long()
        hidden: Tensor = self._base(input_ids=token_ids, position_ids=positions, use_cache=False)[0][0]
        return hidden if step.logit_rows is None else hidden[step.logit_rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """Computes logits by transformers' own module, which may scale or cap them."""
        prefix = self._model.base_model_prefix
        self._given.hidden = hidden[None]
        setattr(self._model, prefix, self._given)
        try:
            logits: Tensor = self._model(
                input_ids=hidden.new_zeros(1, len(hidden), dtype=torch.int64), use_cache=False
            ).logits[0]
        finally:
            setattr(self._model, prefix, self._base)
        return logits

    def _attend(self, call: AttentionCall) -> Tensor:
        """Rows without logits end in the last layer once it has their K and V; they are 0 from there on."""
        step, ops = self._step, self._pass.ops
        layer = self._layers.setdefault(call.module, len(self._layers))
        kind = self.kind_of_layer[layer]
        spec = self.attention_kinds[kind]
        q, k, v = (states[0].transpose(0, 1) for states in (call.query, call.key, call.value))  # [T, H, D]
        k_pages, v_pages = self._kv_cache.k_pages[layer], self._kv_cache.v_pages[layer]
        ops.append_kv(k, v, step.slots, k_pages, v_pages)
        if call.sinks is not None and layer not in self._sinks:
            self._sinks[layer] = call.sinks.detach().float().contiguous()

        def attended(plan: Any, q: Tensor) -> Tensor:
            out = q.new_empty(q.shape)
            scale, cap, sinks = spec.softmax_scale, spec.soft_cap, self._sinks.get(layer)
            ops.attention(plan, q, k_pages, v_pages, out=out, softmax_scale=scale, soft_cap=cap, sinks=sinks)
            return out

        if layer + 1 < len(self.kind_of_layer) or step.logit_rows is None:
            return attended(step.plans[kind], q)[None]
        out = q.new_zeros(q.shape)
        out[step.logit_rows] = attended(step.logit_plans[kind], q[step.logit_rows])
        return out[None]


class TransformersModel(ModulesPass):
    """The weights of a checkpoint."""

    @torch.inference_mode()
    def __init__(self, config: TransformersConfig, reader: WeightReader, *, in_8_bits: bool = False) -> None:
        """in_8_bits: packs our products in 8 bits; experts that are not ours keep their dtype.

        Takes every tensor of `reader`; raises ValueError for a missing, misshapen or unknown one, and if the
        modules give packed sequences other results than each alone."""
        super().__init__(config, load_weights(config, reader), reader.dtype)
        self._in_8_bits = in_8_bits
        try:
            check = PackedCheck(self._model, config.vocab_size)
            self._linears = replace_modules(self._model, self._pass)
            hand_attention_to(self._attend, self._model)
            check.compare(self)
        except Exception as error:
            raise Unsupported(f"{reader.path}: architecture {config.architecture}: {reason(error)}") from error

    def pack_weights(self) -> None:
        """The embedding stays unpacked, even if it is also the output layer."""
        embedding = self._base.get_input_embeddings().weight
        for linear in self._linears:
            if self._in_8_bits:
                linear.quantize()
            else:
                linear.pack(keep_plain=linear.weight.data_ptr() == embedding.data_ptr())

    @property
    def products(self) -> dict[str, str]:
        """Stacked experts that transformers' modules multiply are products, too."""
        left = [parameter for parameter in self._base.parameters() if parameter.dim() == 3]
        return ways_of(self._linears) | {name_of(weight): "by transformers" for weight in left}


class GivenHidden(nn.Module):
    """Replaces a model's layers, to run only what comes after them."""

    hidden: Tensor  # [1, R, hidden_size]

    @property
    def decoder(self) -> GivenHidden:
        """The attribute through which some models reach their layers."""
        return self

    def forward(self, *_: Any, **__: Any) -> GivenOutput:
        return GivenOutput(last_hidden_state=self.hidden)


@dataclass
class GivenOutput(ModelOutput):
    """Has a field for anything that a model passes on."""

    last_hidden_state: Tensor | None = None
    cache: None = None
    hidden_states: None = None
    attentions: None = None
    cross_attentions: None = None
    router_logits: None = None

    @property
    def past_key_values(self) -> None:
        """What transformers 5.20 has instead of `cache`. Later ones warn of a field with this name."""
