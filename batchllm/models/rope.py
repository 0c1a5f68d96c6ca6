"""The position encoding in a config.json: rotation of q and k."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from batchllm.models.fields import number
from batchllm.text import printable

FACTORS: dict[str, tuple[str, ...]] = {  # by supported type of rotation
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
OPTIONAL_FACTORS: dict[str, tuple[str, ...]] = {
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")
}
# Fields allowed beside the factors: read elsewhere, or without effect on these types.
OTHER_KEYS = {"rope_theta", "rope_type", "type", "partial_rotary_factor", "original_max_position_embeddings"}


@dataclass(frozen=True)
class Rotation:
    """Elements i and i + head_dim / 2 of a head are turned by position * theta^(-2 i / head_dim)."""

    theta: float
    rope_type: str = "default"  # how the angles are scaled
    factors: dict[str, float] = field(
        default_factory=dict, hash=False
    )  # FACTORS[rope_type], and the given optional ones

    @property
    def scale(self) -> float:
        """The scale by which cos and sin are multiplied."""
        if self.rope_type != "yarn":
            return 1.0
        if "attention_factor" in self.factors:
            return self.factors["attention_factor"]
        growth = 0.1 * math.log(max(self.factors["factor"], 1.0))
        if "mscale" in self.factors and "mscale_all_dim" in self.factors:
            return (growth * self.factors["mscale"] + 1.0) / (growth * self.factors["mscale_all_dim"] + 1.0)
        return growth + 1.0


def read_rotation(raw: dict[str, Any], default_theta: float, refuse: Callable[[str], None]) -> Rotation:
    """Theta may be beside the scaling or in it. `refuse` is called for settings that the decoder does not support,
    which the result leaves out. Raises ValueError for invalid settings."""
    settings = _settings(raw)
    for place in (raw, settings):
        if (rotated := place.get("partial_rotary_factor", 1.0)) != 1.0:
            refuse(f"partial_rotary_factor: expected 1.0, got {printable(str(rotated))}")
    theta = number("rope_theta", settings.get("rope_theta", raw.get("rope_theta", default_theta)))
    if nested := [name for name, value in settings.items() if isinstance(value, dict)]:
        refuse(f"rope_parameters: settings of a kind of layer ({printable(nested[0])}) are not supported")
        return Rotation(theta)
    rope_type = settings.get("rope_type", settings.get("type", "default"))
    if "type" in settings and settings["type"] != rope_type:
        raise ValueError(f"rope type: rope_type is {rope_type!r:.80}, and type {settings['type']!r:.80}")
    if not isinstance(rope_type, str) or rope_type not in FACTORS:
        refuse(f"rope type {rope_type!r:.80} is not supported; supported: {', '.join(FACTORS)}")
        return Rotation(theta)
    needed = FACTORS[rope_type]
    if missing := [name for name in needed if name not in settings]:
        raise ValueError(f"rope type {rope_type!r} needs {', '.join(missing)}")
    optional = [name for name in OPTIONAL_FACTORS.get(rope_type, ()) if settings.get(name) is not None]
    if unread := sorted(settings.keys() - {*needed, *OPTIONAL_FACTORS.get(rope_type, ()), *OTHER_KEYS}):
        refuse(f"rope type {rope_type!r} has no {printable(unread[0])}")
    factors = {name: number(name, settings[name]) for name in (*needed, *optional)}
    if rope_type == "llama3" and factors["high_freq_factor"] <= factors["low_freq_factor"]:
        raise ValueError(
            f"high_freq_factor: expected more than low_freq_factor ({factors['low_freq_factor']:g}), "
            f"got {factors['high_freq_factor']:g}"
        )
    if rope_type == "yarn" and theta <= 1:
        raise ValueError(f"rope_theta: expected more than 1 with rope type 'yarn', got {theta:g}")
    return Rotation(theta, rope_type, factors)


def _settings(raw: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` (transformers 5) or `rope_scaling` (4)."""
    given = {name: raw[name] for name in ("rope_parameters", "rope_scaling") if raw.get(name) not in (None, {})}
    for name, settings in given.items():
        if not isinstance(settings, dict):
            raise ValueError(f"{name}: expected an object, got {settings!r:.80}")
    if len(given) == 2 and given["rope_parameters"] != given["rope_scaling"]:
        raise ValueError("rope_parameters and rope_scaling differ; transformers reads one of them")
    return next(iter(given.values()), {})
