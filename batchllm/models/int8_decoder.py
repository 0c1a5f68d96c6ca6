"""The decoder with weights and activations in 8 bits.

A few large elements of a row would cost all others their precision. So weights are changed at load, in float32, such
that the model computes the same without such elements: norm weights are folded into the matrices after them, and the
residual stream and the values of every head are rotated by orthogonal matrices, which are folded into the matrices on
both sides. At run time only the Hadamard transform of the input of `down` takes time, in the kernel that computes it.

T, Hq, Hkv, D as in decoder.py. The residual stream is float32; q, k, v, the embedding and the logits have the model's
dtype. The reader of a product multiplies by each row's scale and then adds the bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from batchllm.device.int8 import (
    Int8Linear,
    Int8Rows,
    Products,
    dequantize,
    norm_quantize,
    quantize,
    segments_of,
    silu_mul_quantize,
)
from batchllm.device.kv_cache import PagedKVCache
from batchllm.device.linear import ways_of
from batchllm.device.ops import Ops
from batchllm.device.rotation import rotated, rotated_rows
from batchllm.device.step import Step
from batchllm.models.config import ModelConfig
from batchllm.models.decoder import Layer, load_layer, rotation_angles, rotation_frequencies, rotation_scale
from batchllm.models.forward_pass import ForwardPass
from batchllm.models.layer_spec import LayerSpec
from batchllm.models.weights import WeightReader

VOCAB_AT_ONCE = 8192  # rows of the embedding in float32 at a time


@dataclass
class Int8Layer:
    qkv: Int8Linear  # hidden_size -> (Hq + 2 Hkv) D, in the order q, k, v
    q_norm: Tensor | None  # [D]
    k_norm: Tensor | None  # [D]
    o: Int8Linear  # Hq D -> hidden_size
    gate_up: Int8Linear  # hidden_size -> 2 intermediate_size
    down: Int8Linear  # intermediate_size, transformed over its num_segments -> hidden_size


class Int8Model(ForwardPass):
    """Weights and the forward pass over a Step, on a CPU."""

    def __init__(self, config: ModelConfig, reader: WeightReader, dtype: torch.dtype) -> None:
        """Takes every tensor of `reader`, which reads float32, one layer at a time. Raises ValueError like Model."""
        self.config = config
        self.attention_kinds, self.kind_of_layer = config.attention_kinds, config.kind_of_layer
        self.dtype, self.device = dtype, torch.device("cpu")
        hidden = config.hidden_size
        self.layers = [
            folded(load_layer(reader, spec, hidden, f"model.layers.{i}."), spec, dtype)
            for i, spec in enumerate(config.layers)
        ]
        embedding = reader.take("model.embed_tokens.weight", config.vocab_size, hidden)
        norm = reader.take("model.norm.weight", hidden)
        if config.tie_word_embeddings:
            reader.drop_copy("lm_head.weight", embedding, of="model.embed_tokens.weight")
            head = embedding
        else:
            head = reader.take("lm_head.weight", config.vocab_size, hidden)
        reader.finish()
        self.lm_head = Int8Linear(rotated(rows * norm) for rows in head.split(VOCAB_AT_ONCE))
        self.embedding = torch.cat([rotated(rows).to(dtype) for rows in embedding.split(VOCAB_AT_ONCE)])
        self.inv_freq, self.rotation_scale = rotation_frequencies(config, self.device), rotation_scale(config)
        self._ones = torch.ones(hidden)

    @property
    def products(self) -> dict[str, str]:
        of_layers = [linear for layer in self.layers for linear in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        return ways_of([*of_layers, self.lm_head])

    def pack_weights(self) -> None:
        """Nothing to do: weights in 8 bits are already packed."""

    def forward(self, step: Step, kv_cache: PagedKVCache, ops: Ops) -> Tensor:
        """Like Model's, but hidden states are float32 and rotated."""
        config, heads = self.config, self.attention_kinds[0]
        num_q, num_kv, dim = heads.num_qo_heads, heads.num_kv_heads, heads.head_dim
        eps, plans = config.rms_norm_eps, step.plans
        x = F.embedding(step.token_ids, self.embedding).float()  # [T, hidden_size]
        delta: Products | None = None  # what the last block adds to x; the next norm adds it
        angles = rotation_angles(self.inv_freq, step.positions, self.rotation_scale)
        normed = Int8Rows.empty(*x.shape)
        qkv = x.new_empty(len(x), num_q + 2 * num_kv, dim, dtype=self.dtype)
        attended = x.new_empty(len(x), num_q, dim, dtype=self.dtype)  # [T, Hq, D]
        mixed = Int8Rows.empty(len(x), num_q * dim)
        activated = Int8Rows.empty(len(x), config.layers[0].intermediate_size)
        for layer, spec, kind, k_pages, v_pages in zip(
            self.layers, config.layers, self.kind_of_layer, kv_cache.k_pages, kv_cache.v_pages, strict=True
        ):
            norm_quantize(x, eps=eps, out=normed, delta=delta)
            for part, products in layer.qkv.products_in_parts(normed):
                dequantize(products, out=qkv[part].flatten(1))
            norms = None if layer.q_norm is None or layer.k_norm is None else (layer.q_norm, layer.k_norm)
            turned_by = angles if spec.rotation is not None else None
            ops.norm_rotate_append(qkv, norms, turned_by, step.slots, k_pages, v_pages, eps=eps)
            q = qkv[:, :num_q]  # [T, Hq, D]
            if layer is self.layers[-1] and step.logit_rows is not None:
                rows, plans = step.logit_rows, step.logit_plans
                x, q = x[rows], q[rows]
                those = slice(len(rows))
                normed, attended, mixed, activated = normed[those], attended[those], mixed[those], activated[those]
            ops.attention(plans[kind], q, k_pages, v_pages, out=attended, softmax_scale=spec.attention.softmax_scale)
            quantize(attended.flatten(1), out=mixed)
            norm_quantize(x, eps=eps, out=normed, delta=layer.o.products(mixed))
            for part, products in layer.gate_up.products_in_parts(normed):
                silu_mul_quantize(products, out=activated[part], num_segments=layer.down.num_segments)
            delta = layer.down.products(activated)
        assert delta is not None  # there is a layer
        dequantize(delta, out=delta.values)
        ops.rms_norm(x, self._ones, eps=eps, out=x, delta=delta.values)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden, self.dtype)


def folded(layer: Layer, spec: LayerSpec, dtype: torch.dtype) -> Int8Layer:
    """Converts a layer from float32. q_norm and k_norm stay in `dtype`."""
    attention = spec.attention
    dim, kv_size = attention.head_dim, attention.kv_size
    qk, v = rotated(layer.qkv.weight * layer.input_norm).tensor_split((-kv_size,))
    qkv, qkv_bias = torch.cat((qk, rotated_rows(v.unflatten(0, (-1, dim))).flatten(0, 1))), layer.qkv.bias
    if qkv_bias is not None:
        qk_bias, v_bias = qkv_bias.tensor_split((-kv_size,))
        qkv_bias = torch.cat((qk_bias, rotated(v_bias.unflatten(0, (-1, dim))).flatten()))
    o = rotated(layer.o.weight.unflatten(1, (-1, dim))).flatten(1)
    return Int8Layer(
        qkv=Int8Linear(qkv, qkv_bias),
        q_norm=None if layer.q_norm is None else layer.q_norm.to(dtype),
        k_norm=None if layer.k_norm is None else layer.k_norm.to(dtype),
        o=Int8Linear(rotated_rows(o), None if layer.o.bias is None else rotated(layer.o.bias)),
        gate_up=Int8Linear(rotated(layer.gate_up.weight * layer.post_norm), layer.gate_up.bias),
        down=Int8Linear(
            rotated_rows(layer.down.weight),
            None if layer.down.bias is None else rotated(layer.down.bias),
            num_segments=segments_of(spec.intermediate_size),
        ),
    )
