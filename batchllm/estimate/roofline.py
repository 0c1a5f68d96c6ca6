"""How long the steps of a simulation would take: a model, not a measurement.

A step is its linear layers, then its attention, then a fixed overhead. Either part takes the longer of its arithmetic
and its memory traffic, at the rates that a device sustains.

    shape = ModelShape.from_config("config.json")
    step_seconds(simulation, shape, DEVICES["h100"]).sum()
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import batchllm_ext as ext
from batchllm.estimate.simulate import Simulation
from batchllm.models.config import positive_int, read_json


@dataclass(frozen=True)
class Device:
    """Peaks, and the shares of them that a step sustains."""

    name: str
    flops_per_s: float
    """Dense bfloat16 peak."""
    bytes_per_s: float
    """Memory bandwidth."""
    memory_bytes: int
    matmul_efficiency: float
    """Of flops_per_s, in matrix products of many rows."""
    attention_efficiency: float
    """Of flops_per_s, in attention over many rows."""
    bandwidth_efficiency: float
    """Of bytes_per_s."""
    step_overhead_s: float
    """Scheduling, launches and sampling of one step."""


def _gpu(name: str, matmul_efficiency: float) -> Device:
    peaks = ext.gpu_peaks()[name]
    return Device(
        name=name,
        flops_per_s=peaks["flops_per_s"],
        bytes_per_s=peaks["bytes_per_s"],
        memory_bytes=80 * 2**30,
        matmul_efficiency=matmul_efficiency,
        attention_efficiency=0.6,
        bandwidth_efficiency=0.85,
        step_overhead_s=2e-3,
    )


# Peaks are those of AttentionPlan.explain(): NVIDIA's data sheets.
# Products: FlashAttention-2 (arXiv 2307.08691) gives 80 to 90 % of the peak for those on an A100; 70 % is assumed for
# an H100, which its power holds back. Attention: 50 to 73 % on an A100 (the same paper), up to 75 % on an H100
# (FlashAttention-3, arXiv 2407.08608). Bandwidth and overhead are assumed.
# "cpu" is the two-core AVX-512 BF16 machine of this project's benchmarks. Its product and read rates were measured
# there, so nothing is taken off them; half of the former is assumed for attention.
DEVICES = {
    "a100": _gpu("A100 80GB SXM", matmul_efficiency=0.8),
    "h100": _gpu("H100 80GB SXM", matmul_efficiency=0.7),
    "cpu": Device(
        name="2 cores with AVX-512 BF16",
        flops_per_s=0.92e12,
        bytes_per_s=34e9,
        memory_bytes=24 * 2**30,
        matmul_efficiency=1.0,
        attention_efficiency=0.5,
        bandwidth_efficiency=1.0,
        step_overhead_s=2e-3,
    ),
}


@dataclass(frozen=True)
class _Family:
    """What config.json leaves unsaid, by its model_type."""

    norms_per_layer: int = 2
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False


_FAMILIES = {
    "llama": _Family(),
    "mistral": _Family(),
    "phi3": _Family(),
    "qwen2": _Family(qkv_bias=True),
    "qwen3": _Family(qk_norm=True),
    "gemma": _Family(tied=True),
    "gemma2": _Family(tied=True, norms_per_layer=4),
    "gemma3_text": _Family(tied=True, norms_per_layer=4, qk_norm=True),
}
_VALUE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a dense decoder with gated MLPs that decide what a step costs.

    Sliding windows are not modelled: every row is taken to attend to all of its context.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    num_parameters: int
    """All of them, embeddings once where they are tied."""
    value_bytes: int
    """Of one weight, and of one element of K or V."""

    @classmethod
    def from_config(cls, path: Path | str) -> ModelShape:
        """Reads a Hugging Face config.json, given the file or its directory.

        Raises FileNotFoundError, or ValueError that names the file and what of it is missing, invalid or unsupported.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "config.json"
        raw = read_json(path)
        try:
            return _parse(raw)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @property
    def num_linear_parameters(self) -> int:
        """Weights that every token is multiplied with."""
        attention = 2 * self.hidden_size * (self.num_qo_heads + self.num_kv_heads) * self.head_dim
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def num_logit_parameters(self) -> int:
        """Weights that every sampled row is multiplied with."""
        return self.vocab_size * self.hidden_size

    @property
    def weight_bytes(self) -> int:
        return self.num_parameters * self.value_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.value_bytes


def step_seconds(simulation: Simulation, model: ModelShape, device: Device) -> NDArray[np.float64]:
    """float64 [num_steps]; a model, not a measurement."""
    num_tokens = simulation.num_decode_tokens.astype(np.float64) + simulation.num_prefill_tokens
    linear_flops = 2 * (model.num_linear_parameters * num_tokens + model.num_logit_parameters * simulation.num_sampled)
    linear_weights = model.num_linear_parameters + model.num_logit_parameters * (simulation.num_sampled > 0)
    linear_bytes = linear_weights * model.value_bytes
    attention_flops = 4.0 * model.head_dim * model.num_qo_heads * model.num_layers * simulation.attention_pairs
    attention_bytes = float(model.kv_bytes_per_token) * simulation.kv_tokens_read

    bandwidth = device.bytes_per_s * device.bandwidth_efficiency
    linear = np.maximum(linear_flops / (device.flops_per_s * device.matmul_efficiency), linear_bytes / bandwidth)
    attention = np.maximum(
        attention_flops / (device.flops_per_s * device.attention_efficiency), attention_bytes / bandwidth
    )
    return linear + attention + device.step_overhead_s


def _parse(raw: dict[str, Any]) -> ModelShape:
    model_type = raw.get("model_type")
    if experts := next((name for name in raw if "experts" in name and raw[name]), None):
        raise ValueError(f"{experts}: mixture-of-experts models are not supported (model_type {model_type!r})")
    if "quantization_config" in raw:
        raise ValueError("quantization_config: quantized weights are not supported")
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise ValueError(f"model_type: expected one of {', '.join(_FAMILIES)}, got {model_type!r}")
    family = _FAMILIES[model_type]
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "bfloat16"
    if not isinstance(dtype, str) or dtype not in _VALUE_BYTES:
        raise ValueError(f"dtype: expected one of {', '.join(_VALUE_BYTES)}, got {dtype!r}")

    layers = positive_int(raw, "num_hidden_layers")
    hidden = positive_int(raw, "hidden_size")
    intermediate = positive_int(raw, "intermediate_size")
    vocab = positive_int(raw, "vocab_size")
    qo_heads = positive_int(raw, "num_attention_heads")
    kv_heads = positive_int(raw, "num_key_value_heads", qo_heads)
    head_dim = positive_int(raw, "head_dim", hidden // qo_heads)
    if qo_heads % kv_heads:
        raise ValueError(f"num_attention_heads ({qo_heads}) is not a multiple of num_key_value_heads ({kv_heads})")

    qkv_size = (qo_heads + 2 * kv_heads) * head_dim
    attention_bias = bool(raw.get("attention_bias", False))
    per_layer = hidden * (qkv_size + qo_heads * head_dim) + 3 * hidden * intermediate
    per_layer += family.norms_per_layer * hidden
    per_layer += 2 * head_dim * family.qk_norm
    per_layer += qkv_size * (family.qkv_bias or attention_bias)
    per_layer += hidden * (attention_bias and not family.qkv_bias)
    per_layer += (2 * intermediate + hidden) * bool(raw.get("mlp_bias", False))
    tied = bool(raw.get("tie_word_embeddings", family.tied))
    return ModelShape(
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        vocab_size=vocab,
        num_qo_heads=qo_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        num_parameters=layers * per_layer + hidden + vocab * hidden * (1 if tied else 2),
        value_bytes=_VALUE_BYTES[dtype],
    )
