"""Directories of tiny models with quantised linear layers, and the weights in them.

Values, zeros and scales are drawn, and packed bit by bit as their formats are documented.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

FP8 = torch.float8_e4m3fn
AWQ_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)  # the columns that the nibbles of a word have, the lowest first


@dataclass
class Draw:
    """A weight [out, in] = (values - zeros[:, group_of]) * scales[:, group_of], of about tiny's size."""

    out_features: int
    in_features: int
    bits: int
    group_size: int  # -1: all
    generator: np.random.Generator
    shuffled: bool = False  # the groups of columns
    values: np.ndarray = field(init=False)
    zeros: np.ndarray = field(init=False)
    scales: np.ndarray = field(init=False)
    group_of: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        draw, levels = self.generator, 1 << self.bits
        group_size = self.in_features if self.group_size < 0 else self.group_size
        self.group_of = np.arange(self.in_features, dtype=np.int32) // group_size
        if self.shuffled:
            draw.shuffle(self.group_of)
        shape = self.out_features, int(self.group_of.max()) + 1
        self.values = draw.integers(0, levels, (self.out_features, self.in_features))
        self.zeros = draw.integers(1, levels, shape)
        step = 3 / levels / self.in_features**0.5
        self.scales = (step * draw.uniform(0.5, 1.5, shape)).astype(np.float16)

    @property
    def weight(self) -> Tensor:
        centred = (self.values - self.zeros[:, self.group_of]).astype(np.float32)
        return torch.from_numpy(centred * self.scales[:, self.group_of].astype(np.float32))


Quantise = Callable[[int, int, np.random.Generator], tuple[dict[str, Tensor], Tensor]]
"""(out, in) -> tensors by suffix, and the weight."""


def packed(values: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """[n, m] -> [n, m * bits / 32], rounded up: field k of a word is its column order[k]."""
    per_word = 32 // bits
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % per_word)))
    words = np.zeros((len(values), padded.shape[1] // per_word), np.uint32)
    for k, column in enumerate(order or range(per_word)):
        words |= padded[:, column::per_word].astype(np.uint32) << np.uint32(bits * k)
    return torch.from_numpy(words.view(np.int32))


def gptq(bits: int, group_size: int, *, offset: int = 1, desc_act: bool = False, g_idx: bool = True) -> Quantise:
    def quantise(out_features: int, in_features: int, draw: np.random.Generator) -> tuple[dict[str, Tensor], Tensor]:
        drawn = Draw(out_features, in_features, bits, group_size, draw, shuffled=desc_act)
        parts = {
            "qweight": packed(drawn.values, bits).t(),
            "qzeros": packed(drawn.zeros.T - offset, bits),
            "scales": torch.from_numpy(drawn.scales.T.copy()),
        }
        return parts | ({"g_idx": torch.from_numpy(drawn.group_of)} if g_idx else {}), drawn.weight

    return quantise


def awq(group_size: int) -> Quantise:
    def quantise(out_features: int, in_features: int, draw: np.random.Generator) -> tuple[dict[str, Tensor], Tensor]:
        drawn = Draw(out_features, in_features, 4, group_size, draw)
        parts = {
            "qweight": packed(drawn.values.T, 4, AWQ_NIBBLES),
            "qzeros": packed(drawn.zeros.T, 4, AWQ_NIBBLES),
            "scales": torch.from_numpy(drawn.scales.T.copy()),
        }
        return parts, drawn.weight

    return quantise


def fp8(scale: str, block: tuple[int, int], scale_ndim: int = 2) -> Quantise:
    """block: (rows, columns) of a scale; -1: all."""

    def quantise(out_features: int, in_features: int, draw: np.random.Generator) -> tuple[dict[str, Tensor], Tensor]:
        rows, columns = (block[0] if block[0] > 0 else out_features), (block[1] if block[1] > 0 else in_features)
        values = torch.from_numpy(draw.normal(0, 40, (out_features, in_features))).to(FP8)
        grid = -(-out_features // rows), -(-in_features // columns)
        scales = torch.from_numpy(draw.uniform(0.02, 0.06, grid) / in_features**0.5).float()
        scale_of = scales.repeat_interleave(rows, 0)[:out_features].repeat_interleave(columns, 1)[:, :in_features]
        weight = values.float() * scale_of
        return {"weight": values, scale: scales.reshape(scales.shape[:scale_ndim])}, weight

    return quantise


def save_quantized(
    directory: Path,
    model: transformers.PreTrainedModel,
    settings: dict[str, Any],
    quantise: Quantise,
    keep: tuple[str, ...] = ("lm_head",),
) -> transformers.PreTrainedModel:
    """Writes `model` with other weights in its linear layers, but those with `keep` in their names, and gives it the
    weights that are stored."""
    draw, stored = np.random.default_rng(0), {}
    for name, weight in model.state_dict().items():
        layer, _, suffix = name.rpartition(".")
        if suffix != "weight" or not layer.endswith(("_proj", "lm_head")) or any(name in layer for name in keep):
            stored[name] = weight
            continue
        parts, dequantised = quantise(*weight.shape, draw)
        weight.copy_(dequantised)
        stored |= {f"{layer}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    if model.config.tie_word_embeddings:
        del stored["lm_head.weight"]
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text()) | {"quantization_config": settings}
    (directory / "config.json").write_text(json.dumps(config))
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    return model
