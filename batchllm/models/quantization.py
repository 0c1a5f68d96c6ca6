"""The quantisation settings of config.json, as the schemes by which weights are stored.

Settings that only concern products, activations and the KV cache are ignored, because weights are dequantised. The
tensors that exist tell which layers are quantised.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from batchllm.models.weight_schemes import AwqWeight, GptqWeight, PackedWeight, ScaledWeight, WeightScheme
from batchllm.text import printable

ANY_LINEAR = "Linear"  # the target that means every linear layer
WHOLE, PER_ROW = (-1, -1), (1, -1)  # the blocks of a weight with one scale, and with a scale per row
FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Quantization:
    schemes: tuple[tuple[str, WeightScheme], ...]
    """Schemes by target: ANY_LINEAR, the name of a layer, or "re:" and an expression for the beginning of names."""

    def scheme(self, layer: str, mark: str) -> WeightScheme | None:
        """The scheme of the layer with that name, one of whose tensors has that suffix."""
        found = [(_precision(target, layer), scheme) for target, scheme in self.schemes if scheme.mark == mark]
        best = max(found, key=lambda pair: pair[0], default=(0, None))
        return best[1] if best[0] else None


def _precision(target: str, layer: str) -> int:
    """0 if the target does not match the layer; a name counts more than an expression, and that more than
    ANY_LINEAR."""
    if target == layer:
        return 3
    if target.startswith("re:"):
        return 2 if re.match(target.removeprefix("re:"), layer) else 0
    return 1 if target == ANY_LINEAR else 0


def read_quantization(raw: dict[str, Any]) -> Quantization | None:
    """None if all weights are floats. Raises ValueError that names the invalid or unsupported field of config.json."""
    field = "compression_config" if raw.get("compression_config") else "quantization_config"
    settings = raw.get(field)
    if settings in (None, {}):
        return None
    if not isinstance(settings, dict):
        raise ValueError(f"{field}: expected an object, got {settings!r:.80}")
    try:
        method = _one_of(settings, "quant_method", tuple(METHODS))
        return Quantization(METHODS[method](settings))
    except ValueError as error:
        raise ValueError(f"{field}.{error}") from None


Schemes = tuple[tuple[str, WeightScheme], ...]


def _gptq(settings: dict[str, Any]) -> Schemes:
    bits = _one_of(settings, "bits", (2, 4, 8))
    # The first format stores zeros minus one.
    stored = _one_of(settings, "checkpoint_format", ("gptq", "gptq_v2"), "gptq")
    _one_of(settings, "is_marlin_format", (False,), False)
    dynamic = settings.get("dynamic") or {}
    if not isinstance(dynamic, dict) or any(not name.startswith("-:") for name in dynamic):
        raise ValueError(f"dynamic: expected only layers that are left out (-:), got {_shown(dynamic)}")
    return ((ANY_LINEAR, GptqWeight(bits, _group_size(settings), zero_offset=int(stored == "gptq"))),)


def _awq(settings: dict[str, Any]) -> Schemes:
    _one_of(settings, "bits", (4,))
    _one_of(settings, "version", ("gemm", "GEMM"), "gemm")
    _one_of(settings, "zero_point", (True,), True)
    return ((ANY_LINEAR, AwqWeight(_group_size(settings))),)


def _fp8(settings: dict[str, Any]) -> Schemes:
    _one_of(settings, "fmt", ("e4m3",), "e4m3")
    block = settings.get("weight_block_size")
    blocks = (WHOLE, PER_ROW) if block is None else (_block(block, "weight_block_size"),)
    return tuple((ANY_LINEAR, ScaledWeight(mark, FP8, blocks)) for mark in ("weight_scale_inv", "weight_scale"))


def _fbgemm_fp8(settings: dict[str, Any]) -> Schemes:
    return ((ANY_LINEAR, ScaledWeight("weight_scale", FP8, (PER_ROW,))),)


def _compressed_tensors(settings: dict[str, Any]) -> Schemes:
    for name in ("sparsity_config", "transform_config"):
        if settings.get(name) and _object(settings, name).get("format") != "dense":
            raise ValueError(f"{name}: expected none, got {_shown(settings[name])}")
    schemes: list[tuple[str, WeightScheme]] = []
    groups = _object(settings, "config_groups")
    for name, group in groups.items():
        if not isinstance(group, dict):
            raise ValueError(f"config_groups.{printable(name)}: expected an object, got {_shown(group)}")
        try:
            schemes += _compressed_group(group, settings.get("format"))
        except ValueError as error:
            raise ValueError(f"config_groups.{printable(name)}.{error}") from None
    return tuple(schemes)


def _compressed_group(group: dict[str, Any], stored: Any) -> Schemes:
    if group.get("weights") is None:
        return ()  # they are not quantised
    targets = group.get("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"targets: expected a list of names, got {_shown(targets)}")
    scheme = _compressed_weight(_object(group, "weights"), group.get("format") or stored)
    return tuple((target, scheme) for target in targets)


def _compressed_weight(weights: dict[str, Any], stored: Any) -> WeightScheme:
    formats = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
    stored = _one_of({"format": stored}, "format", formats)
    try:
        kind = _one_of(weights, "type", ("int", "float"), "int")
        is_symmetric = _one_of(weights, "symmetric", (True, False), True)
        block = _compressed_block(weights)
        if stored == "pack-quantized":
            _one_of(weights, "type", ("int",), "int")
            if block[0] != 1:
                raise ValueError(f"strategy: expected group or channel, got {_shown(weights.get('strategy'))}")
            return PackedWeight(_one_of(weights, "num_bits", (4, 8)), block[1], is_symmetric)
        _one_of(weights, "num_bits", (8,))
        if kind == "float":
            return ScaledWeight("weight_scale", FP8, (block,))
        return ScaledWeight("weight_scale", torch.int8, (block,), None if is_symmetric else "weight_zero_point")
    except ValueError as error:
        raise ValueError(f"weights.{error}") from None


def _compressed_block(weights: dict[str, Any]) -> tuple[int, int]:
    """Without `strategy`, the library derives it from the group size."""
    group_size = weights.get("group_size")
    by_group_size = "tensor" if group_size is None else "channel" if group_size == -1 else "group"
    strategy = _one_of(weights, "strategy", ("tensor", "channel", "group", "block"), by_group_size)
    if strategy == "block":
        return _block(weights.get("block_structure"), "block_structure")
    return {"tensor": WHOLE, "channel": PER_ROW}.get(strategy) or (1, _group_size(weights))


def _one_of(settings: dict[str, Any], name: str, values: tuple[Any, ...], default: Any = None) -> Any:
    value = settings.get(name)
    value = default if value is None else value
    if not any(value == one and type(value) is type(one) for one in values):
        raise ValueError(f"{name}: expected {' or '.join(map(str, values))}, got {_shown(value)}")
    return value


def _object(settings: dict[str, Any], name: str) -> dict[str, Any]:
    value = settings.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"{printable(name)}: expected an object, got {_shown(value)}")
    return value


def _group_size(settings: dict[str, Any]) -> int:
    value = settings.get("group_size")
    if not isinstance(value, int) or isinstance(value, bool) or (value < 1 and value != -1):
        raise ValueError(f"group_size: expected a positive integer or -1, got {_shown(value)}")
    return value


def _block(value: Any, name: str) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or any(type(one) is not int or one < 1 for one in value):
        raise ValueError(f"{name}: expected two positive integers, got {_shown(value)}")
    return value[0], value[1]


def _shown(value: Any) -> str:
    return printable(f"{value!r:.80}")


METHODS: dict[str, Callable[[dict[str, Any]], Schemes]] = {
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
    "fbgemm_fp8": _fbgemm_fp8,
    "fp8": _fp8,
    "gptq": _gptq,
}
