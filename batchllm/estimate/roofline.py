"""How long the steps of a simulation would take: a model, not a measurement.

A step is its linear layers, then its attention, then a fixed overhead. Either part takes the longer of its arithmetic
and its memory traffic, at the rates that a device sustains; on a device that does not overlap them, linear layers take
the sum.

    model = describe_model(Path("config.json"))
    step_seconds(simulation, model, DEVICES["h100"]).sum()
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import batchllm_ext as ext
from batchllm.estimate.simulate import Simulation
from batchllm.models.description import DTYPE_BYTES, ModelDescription


@dataclass(frozen=True)
class Device:
    """Peak rates, and the shares of them that a step sustains."""

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
    dtype: str = "bfloat16"
    """The dtype of weights and KV, whatever the checkpoint's; in DTYPE_BYTES."""
    linear_element_bytes: int | None = None
    """Bytes per element of the weights of matrix products; None: as the dtype has."""
    reads_while_multiplying: bool = True
    """Whether weights are read from memory while others are multiplied. Otherwise the two times add up."""


def _gpu(model: str, matmul_efficiency: float) -> Device:
    gpu = ext.gpu_models()[model]
    return Device(
        name=gpu["name"],
        flops_per_s=gpu["flops_per_s"],
        bytes_per_s=gpu["bytes_per_s"],
        memory_bytes=gpu["memory_bytes"],
        matmul_efficiency=matmul_efficiency,
        attention_efficiency=0.6,
        bandwidth_efficiency=0.85,
        step_overhead_s=2e-3,
    )


# Peaks and memory are those that plans are made by (csrc/attention/plan/gpu_model.h): NVIDIA's data sheets.
# Products: FlashAttention-2 (arXiv 2307.08691) gives 80 to 90 % of the peak for those on an A100; 70 % is assumed for
# an H100 and an H200, which their power holds back. Attention: 50 to 73 % on an A100 (the same paper), up to 75 % on an
# H100 (FlashAttention-3, arXiv 2407.08608). Bandwidth and overhead are assumed.
DEVICES = {
    "a100": _gpu("a100", matmul_efficiency=0.8),
    "h100": _gpu("h100", matmul_efficiency=0.7),
    "h200": _gpu("h200", matmul_efficiency=0.7),
}


def weight_bytes(model: ModelDescription, device: Device) -> int:
    """The size of the weights on the device. In 8 bits, the output layer and the embedding are separate even if
    tied."""
    if device.linear_element_bytes is None:
        return model.weight_bytes
    multiplied = model.num_stored_linear_parameters + model.num_logit_parameters
    others = model.num_parameters - multiplied + model.num_logit_parameters * model.tie_word_embeddings
    return multiplied * device.linear_element_bytes + others * DTYPE_BYTES[model.dtype]


def step_seconds(simulation: Simulation, model: ModelDescription, device: Device) -> NDArray[np.float64]:
    """float64 [num_steps]; a model, not a measurement. Raises ValueError if the simulation lacks one of the model's
    windows."""
    if unknown := set(model.windows).difference(simulation.windows):
        raise ValueError(f"windows: the model has {min(unknown)}, but the simulation {simulation.windows}")
    num_tokens = simulation.num_decode_tokens.astype(np.float64) + simulation.num_prefill_tokens
    linear_flops = 2 * (model.num_linear_parameters * num_tokens + model.num_logit_parameters * simulation.num_sampled)
    linear_weights = model.num_stored_linear_parameters + model.num_logit_parameters * (simulation.num_sampled > 0)
    linear_bytes = linear_weights * (device.linear_element_bytes or DTYPE_BYTES[model.dtype])
    pairs, read = (
        dict(zip(simulation.windows, figures.T.astype(np.float64), strict=True))
        for figures in (simulation.attention_pairs, simulation.kv_tokens_read)
    )
    attention_flops, attention_bytes = model.attention_flops(pairs.__getitem__), model.kv_bytes(read.__getitem__)

    bandwidth = device.bytes_per_s * device.bandwidth_efficiency
    multiply_s, read_s = linear_flops / (device.flops_per_s * device.matmul_efficiency), linear_bytes / bandwidth
    linear = np.maximum(multiply_s, read_s) if device.reads_while_multiplying else multiply_s + read_s
    attention = np.maximum(
        attention_flops / (device.flops_per_s * device.attention_efficiency), attention_bytes / bandwidth
    )
    seconds: NDArray[np.float64] = linear + attention + device.step_overhead_s
    return seconds
