"""The rotary frequencies of a head."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from batchllm.models.rope import Rotation


def frequencies(rotation: Rotation, head_dim: int) -> Tensor:
    """[head_dim / 2] float32, in radians per position; in float32 throughout, as models were trained."""
    result = 1.0 / rotation.theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    scaling = rotation.factors
    if rotation.rope_type == "linear":
        return result / scaling["factor"]
    if rotation.rope_type == "llama3":
        # Wavelengths beyond the original context are stretched by `factor`, short ones are kept, with a ramp between.
        turns = scaling["original_max_position_embeddings"] * result / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return result * kept + result / scaling["factor"] * (1 - kept)
    if rotation.rope_type == "yarn":
        stretched = _stretched_by_yarn(rotation, head_dim)
        return result * (1 - stretched) + result / scaling["factor"] * stretched
    return result


def _stretched_by_yarn(rotation: Rotation, head_dim: int) -> Tensor:
    """The stretched share of each frequency: 0 for those that turn more than beta_fast times in the original context, 1
    for those that turn less than beta_slow times, with a ramp between."""
    scaling = rotation.factors

    def index(turns: float) -> float:
        wavelength = scaling["original_max_position_embeddings"] / turns
        return head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(rotation.theta))

    begin = max(math.floor(index(scaling.get("beta_fast", 32.0))), 0)
    end = min(math.ceil(index(scaling.get("beta_slow", 1.0))), head_dim - 1)
    width = end - begin or 0.001
    return ((torch.arange(head_dim // 2) - begin) / width).clamp(0, 1)
