"""The decoder with weights and activations in 8 bits.

A few large elements of a row would cost all others their precision. So weights are changed at load, in float32, such
that the model computes the same without such elements: norm weights are folded into the matrices after them, and the
residual stream and the values of every head are rotated by orthogonal matrices, which are folded into the matrices on
both sides. At run time only the Hadamard transform of the input of `down` takes time, in the kernel that computes it.

T, Hq, Hkv, D as in decoder.py. The residual stream is float32; q, k, v, the embedding and the logits have the model's
dtype. The reader of a product multiplies by each row's scale and then adds the bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from batchllm.device.int8 import (
    FLOATS_AT_ONCE,
    Int8Linear,
    Int8Rows,
    Products,
    dequantize,
    norm_quantize,
    quantize,
    row_blocks,
    segments_of,
    silu_mul_quantize,
)
from batchllm.device.kv_cache import PagedKVCache
from batchllm.device.linear import ways_of
from batchllm.device.ops import Ops
from batchllm.device.rotation import rotated, rotated_rows
from batchllm.device.step import Step
from batchllm.models.config import ModelConfig
from batchllm.models.decoder import rotation_angles, rotation_frequencies, rotation_scale
from batchllm.models.forward_pass import ForwardPass
from batchllm.models.layer_spec import LayerSpec
from batchllm.models.layer_tensors import LayerTensors, Projections
from batchllm.models.weights import WeightReader


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
        """Takes every tensor of `reader`, which reads float32. Raises ValueError like Model.

        Weights are converted some rows at a time. What needs more memory than it leaves behind comes first, so that
        the most that loading takes is about what it leaves: in the end there are rows of the embedding.
        """
        self.config = config
        self.attention_kinds, self.kind_of_layer = config.attention_kinds, config.kind_of_layer
        self.dtype, self.device = dtype, torch.device("cpu")
        shape = (config.vocab_size, config.hidden_size)
        norm = reader.take("model.norm.weight", config.hidden_size)
        embedding = head = "model.embed_tokens.weight"
        if config.tie_word_embeddings:
            reader.drop_copy("lm_head.weight", *shape, of=embedding)
        else:
            head = "lm_head.weight"
        self.lm_head = Int8Linear((rotated(rows * norm) for rows in reader.blocks(head, *shape)), shape=shape)
        self.layers = [
            load_int8_layer(reader, spec, config.hidden_size, f"model.layers.{i}.", dtype)
            for i, spec in enumerate(config.layers)
        ]
        self.embedding = filled(torch.empty(shape, dtype=dtype), map(rotated, reader.blocks(embedding, *shape)))
        reader.finish()
        self.inv_freq, self.rotation_scale = rotation_frequencies(config, self.device), rotation_scale(config)
        self._ones = torch.ones(config.hidden_size)

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
                del products  # before there are others
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
                del products
            delta = layer.down.products(activated)
        assert delta is not None  # there is a layer
        dequantize(delta, out=delta.values)
        ops.rms_norm(x, self._ones, eps=eps, out=x, delta=delta.values)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden, self.dtype)


def load_int8_layer(reader: WeightReader, spec: LayerSpec, hidden: int, prefix: str, dtype: torch.dtype) -> Int8Layer:
    """The layer whose tensor names begin with `prefix`. q_norm and k_norm stay in `dtype`."""
    of, dim = LayerTensors.of(spec, hidden, prefix), spec.attention.head_dim
    input_norm, post_norm = (
        reader.take(f"{prefix}{name}.weight", hidden) for name in ("input_layernorm", "post_attention_layernorm")
    )
    q_norm, k_norm = (
        reader.take(f"{prefix}self_attn.{name}.weight", dim).to(dtype) if spec.qk_norm else None
        for name in ("q_norm", "k_norm")
    )
    v = list(of.qkv.weights)[-1]

    def blocks(projections: Projections, whole: int = 1) -> Iterator[tuple[str, Tensor]]:
        for name, num_rows in projections.weights.items():
            for rows in reader.blocks(name, num_rows, projections.in_features, whole=whole):
                yield name, rows

    def qkv() -> Iterator[Tensor]:
        for name, rows in blocks(of.qkv, whole=dim):
            turned = rotated(rows * input_norm)
            yield rotated_rows(turned.unflatten(0, (-1, dim))).flatten(0, 1) if name == v else turned

    def linear(projections: Projections, weight: Iterator[Tensor], bias: Tensor | None, **options: int) -> Int8Linear:
        return Int8Linear(weight, bias, shape=(projections.out_features, projections.in_features), **options)

    def bias(projections: Projections) -> Tensor | None:
        return reader.take_stacked(projections.biases) if projections.biases else None

    def rotated_bias(projections: Projections) -> Tensor | None:
        return None if (plain := bias(projections)) is None else rotated(plain)

    qkv_bias = bias(of.qkv)
    if qkv_bias is not None:
        of_values = qkv_bias[-spec.attention.kv_size :].view(-1, dim)
        of_values.copy_(rotated(of_values))
    of_heads = (rotated(rows.unflatten(1, (-1, dim))).flatten(1) for _, rows in blocks(of.o))
    return Int8Layer(
        down=linear(
            of.down,
            with_rotated_outputs((rows for _, rows in blocks(of.down)), of.down),
            rotated_bias(of.down),
            num_segments=segments_of(spec.intermediate_size),
        ),
        o=linear(of.o, with_rotated_outputs(of_heads, of.o), rotated_bias(of.o)),
        qkv=linear(of.qkv, qkv(), qkv_bias),
        q_norm=q_norm,
        k_norm=k_norm,
        gate_up=linear(of.gate_up, (rotated(rows * post_norm) for _, rows in blocks(of.gate_up)), bias(of.gate_up)),
    )


def with_rotated_outputs(blocks: Iterator[Tensor], of: Projections) -> Iterator[Tensor]:
    """R^T weight, again in blocks of rows. Each row has part of all, so the weight is in memory as a whole, in float32,
    until the last block has been taken."""
    weight = filled(torch.empty(of.out_features, of.in_features), blocks)
    for columns in weight.split(max(1, FLOATS_AT_ONCE // of.out_features), dim=1):
        columns.copy_(rotated_rows(columns))
    yield from row_blocks(weight)


def filled(weight: Tensor, blocks: Iterator[Tensor]) -> Tensor:
    """`weight`, with these blocks of rows, one below the other."""
    begin = 0
    for rows in blocks:
        weight[begin : begin + len(rows)] = rows
        begin += len(rows)
    return weight
