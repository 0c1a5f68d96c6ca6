"""One decoder for the Llama family: Llama 2/3, Mistral, SmolLM2/3, Qwen2/3. Differences come from the layers' specs.

T = tokens of the batch, Hq/Hkv = query/KV heads, D = head_dim. Matrix products are torch's; the operations
between them are those of the device's `Ops`. All layers have the heads and sizes of the first, and those that rotate q
and k do so in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from batchllm.device.kv_cache import PagedKVCache
from batchllm.device.linear import Linear, ways_of
from batchllm.device.ops import Ops
from batchllm.device.step import Step
from batchllm.models.config import ModelConfig
from batchllm.models.forward_pass import ForwardPass
from batchllm.models.frequencies import frequencies
from batchllm.models.layer_spec import LayerSpec
from batchllm.models.layer_tensors import LayerTensors, Projections
from batchllm.models.rope import Rotation
from batchllm.models.weights import WeightReader


@dataclass
class Layer:
    input_norm: Tensor  # [hidden_size]
    qkv: Linear  # hidden_size -> (Hq + 2 Hkv) D, in the order q, k, v
    q_norm: Tensor | None  # [D]
    k_norm: Tensor | None  # [D]
    o: Linear  # Hq D -> hidden_size
    post_norm: Tensor  # [hidden_size]
    gate_up: Linear  # hidden_size -> 2 intermediate_size
    down: Linear  # intermediate_size -> hidden_size


class Model(ForwardPass):
    """Weights and the forward pass over a Step."""

    def __init__(self, config: ModelConfig, reader: WeightReader) -> None:
        """Takes every tensor of `reader`; raises ValueError for a missing, misshapen or unknown one."""
        self.config = config
        self.attention_kinds, self.kind_of_layer = config.attention_kinds, config.kind_of_layer
        hidden = config.hidden_size
        self.embedding = reader.take("model.embed_tokens.weight", config.vocab_size, hidden)
        self.layers = [load_layer(reader, spec, hidden, f"model.layers.{i}.") for i, spec in enumerate(config.layers)]
        self.norm = reader.take("model.norm.weight", hidden)
        if config.tie_word_embeddings:
            reader.drop_copy("lm_head.weight", config.vocab_size, hidden, of="model.embed_tokens.weight")
            self.lm_head = Linear(self.embedding)
        else:
            self.lm_head = Linear(reader.take("lm_head.weight", config.vocab_size, hidden))
        reader.finish()
        self.dtype, self.device = self.embedding.dtype, self.embedding.device
        self.inv_freq, self.rotation_scale = rotation_frequencies(config, self.device), rotation_scale(config)

    def pack_weights(self) -> None:
        """The embedding stays unpacked, even if it is also the lm_head."""
        for linear in self._linears_of_layers():
            linear.pack()
        self.lm_head.pack(keep_plain=self.config.tie_word_embeddings)

    @property
    def products(self) -> dict[str, str]:
        return ways_of([*self._linears_of_layers(), self.lm_head])

    def _linears_of_layers(self) -> list[Linear]:
        return [linear for layer in self.layers for linear in (layer.qkv, layer.o, layer.gate_up, layer.down)]

    def forward(self, step: Step, kv_cache: PagedKVCache, ops: Ops) -> Tensor:
        """In the last layer only K and V of rows without logits are needed, so those rows end there."""
        config, heads = self.config, self.attention_kinds[0]
        num_q, num_kv, dim = heads.num_qo_heads, heads.num_kv_heads, heads.head_dim
        norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
        plans = step.plans
        x = F.embedding(step.token_ids, self.embedding)  # [T, hidden_size]
        delta = None  # [T, hidden_size], what the last block adds to x; the next norm adds it
        angles = rotation_angles(self.inv_freq, step.positions, self.rotation_scale)
        normed = torch.empty_like(x)
        attended = x.new_empty(len(x), num_q, dim)  # [T, Hq, D]
        activated = x.new_empty(len(x), config.layers[0].intermediate_size)
        for layer, spec, kind, k_pages, v_pages in zip(
            self.layers, config.layers, self.kind_of_layer, kv_cache.k_pages, kv_cache.v_pages, strict=True
        ):
            norm(x, layer.input_norm, out=normed, delta=delta)
            qkv = layer.qkv(normed).view(len(x), num_q + 2 * num_kv, dim)
            norms = None if layer.q_norm is None or layer.k_norm is None else (layer.q_norm, layer.k_norm)
            turned_by = angles if spec.rotation is not None else None
            ops.norm_rotate_append(qkv, norms, turned_by, step.slots, k_pages, v_pages, eps=config.rms_norm_eps)
            q = qkv[:, :num_q]  # [T, Hq, D]
            if layer is self.layers[-1] and step.logit_rows is not None:
                rows, plans = step.logit_rows, step.logit_plans
                x, q = x[rows], q[rows]
                normed, attended, activated = (buffer[: len(rows)] for buffer in (normed, attended, activated))
            scale = spec.attention.softmax_scale
            ops.attention(plans[kind], q, k_pages, v_pages, out=attended, softmax_scale=scale)
            norm(x, layer.post_norm, out=normed, delta=layer.o(attended.flatten(1)))
            ops.silu_and_mul(layer.gate_up(normed), out=activated)
            delta = layer.down(activated)
        norm(x, self.norm, out=x, delta=delta)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)


def load_layer(reader: WeightReader, spec: LayerSpec, hidden: int, prefix: str) -> Layer:
    """The layer whose tensor names begin with `prefix`."""
    tensors, dim = LayerTensors.of(spec, hidden, prefix), spec.attention.head_dim

    def linear(of: Projections) -> Linear:
        weight = reader.take_stacked(of.weights, of.in_features)
        return Linear(weight, reader.take_stacked(of.biases) if of.biases else None)

    return Layer(
        input_norm=reader.take(f"{prefix}input_layernorm.weight", hidden),
        qkv=linear(tensors.qkv),
        q_norm=reader.take(f"{prefix}self_attn.q_norm.weight", dim) if spec.qk_norm else None,
        k_norm=reader.take(f"{prefix}self_attn.k_norm.weight", dim) if spec.qk_norm else None,
        o=linear(tensors.o),
        post_norm=reader.take(f"{prefix}post_attention_layernorm.weight", hidden),
        gate_up=linear(tensors.gate_up),
        down=linear(tensors.down),
    )


def rotation_frequencies(config: ModelConfig, device: torch.device) -> Tensor | None:
    """The frequencies of all layers that rotate, [D / 2] float32; None if no layer does."""
    rotation = next((spec.rotation for spec in config.layers if spec.rotation is not None), None)
    if rotation is None:
        return None
    return inv_freq(rotation, config.layers[0].attention.head_dim, config.max_model_len).to(device)


def rotation_scale(config: ModelConfig) -> float:
    """The scale of cos and sin, in all layers that rotate."""
    return next((spec.rotation.scale for spec in config.layers if spec.rotation is not None), 1.0)


def rotation_angles(frequencies: Tensor | None, positions: Tensor, scale: float) -> tuple[Tensor, Tensor] | None:
    """cos and sin of the rotary angles, each [T, D / 2] float32, times `scale`; None if no layer rotates."""
    if frequencies is None:
        return None
    angles = torch.outer(positions.float(), frequencies)
    return angles.cos() * scale, angles.sin() * scale


def inv_freq(rotation: Rotation, head_dim: int, max_model_len: int) -> Tensor:
    """Rotary frequencies [D / 2] float32, in radians per position. Raises ValueError if an angle is not finite."""
    result = frequencies(rotation, head_dim)
    if not (result * max_model_len).isfinite().all():
        raise ValueError(f"config.json: rope_theta: the angles of {rotation.theta:g} are not finite in float32")
    return result
