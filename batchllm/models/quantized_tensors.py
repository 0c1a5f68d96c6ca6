"""Safetensors with quantised weights, which are read as floats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from batchllm.models.quantization import Quantization
from batchllm.models.safetensors_files import SafetensorsFiles
from batchllm.models.weight_schemes import WeightScheme

MARKS = ("qweight", "weight_packed", "weight_scale", "weight_scale_inv")
# Suffixes for activations, keys and values, which are not quantised here.
IGNORED_PARTS = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")
IGNORED_SUFFIXES = (".k_scale", ".v_scale", ".q_scale", ".k_zero_point", ".v_zero_point", ".activation_scale")


class QuantizedWeight(NamedTuple):
    scheme: WeightScheme
    parts: dict[str, str]  # names of the existing tensors, by suffix


class QuantizedTensors:
    """A TensorSource of a directory whose config.json has a quantization. A quantised weight has the name that it would
    have as floats, and its parts are hidden."""

    config = SafetensorsFiles.config

    def __init__(self, stored: SafetensorsFiles, quantization: Quantization) -> None:
        self._stored = stored
        self._weights: dict[str, QuantizedWeight] = {}
        self._name = ""  # of the last weight that was read
        self._parts: Mapping[str, Tensor] = {}  # its parts
        names = {name for name in stored.files if not name.endswith(IGNORED_SUFFIXES)}
        for name in stored.files:
            layer, _, mark = name.rpartition(".")
            if mark in MARKS and (scheme := quantization.scheme(layer, mark)):
                suffixes = (*scheme.parts(1, 1), *IGNORED_PARTS)
                parts = {suffix: part for suffix in suffixes if (part := f"{layer}.{suffix}") in stored.files}
                names -= set(parts.values())
                self._weights[f"{layer}.weight"] = QuantizedWeight(scheme, parts)
        own = {name: stored.files[weight.parts[weight.scheme.mark]] for name, weight in self._weights.items()}
        self.files: Mapping[str, Path] = {name: stored.files[name] for name in names} | own

    def shape(self, name: str) -> tuple[int, ...]:
        if (weight := self._weights.get(name)) is None:
            return self._stored.shape(name)
        tensors = self._tensors(weight)
        try:
            return weight.scheme.shape(tensors)
        except KeyError as missing:
            raise self._missing(name, missing.args[0]) from None
        except ValueError:
            part, got = weight.parts[weight.scheme.mark], list(tensors[weight.scheme.mark].shape)
            raise ValueError(f"{self.files[name]}: tensor {part}: expected two dimensions, got shape {got}") from None

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        if (weight := self._weights.get(name)) is None:
            return self._stored.rows(name, begin, end)
        if name != self._name:
            parts = self._tensors(weight)
            self._check(name, weight, parts)
            self._name, self._parts = name, parts
        try:
            return weight.scheme.rows(self._parts, weight.scheme.shape(self._parts)[1], begin, end)
        except ValueError as error:
            raise ValueError(f"{self.files[name]}: tensor {name}: {error}") from None

    def adds_nothing(self, name: str) -> bool:
        """Some exporters write a bias of zeros for every quantised layer."""
        layer, _, suffix = name.rpartition(".")
        if suffix == "bias" and f"{layer}.weight" in self._weights:
            return not self._stored.tensor(name).any()
        return self._stored.adds_nothing(name)

    def close(self) -> None:
        self._name, self._parts = "", {}
        self._stored.close()

    def _tensors(self, weight: QuantizedWeight) -> dict[str, Tensor]:
        return {suffix: self._stored.tensor(name) for suffix, name in weight.parts.items()}

    def _check(self, name: str, weight: QuantizedWeight, tensors: dict[str, Tensor]) -> None:
        """Raises ValueError for a part that is missing or does not fit the scheme."""
        shape = weight.scheme.shape(tensors)
        for suffix, part in weight.scheme.parts(*shape).items():
            if (tensor := tensors.get(suffix)) is None:
                if part.is_needed:
                    raise self._missing(name, suffix)
                continue
            where = f"{self._stored.files[weight.parts[suffix]]}: tensor {weight.parts[suffix]}"
            if tuple(tensor.shape) not in part.shapes:
                expected = " or ".join(str(list(one)) for one in dict.fromkeys(part.shapes))
                raise ValueError(
                    f"{where}: expected shape {expected} for a weight of {list(shape)} by {self.config} "
                    f"(quantization_config), got {list(tensor.shape)}"
                )
            if tensor.dtype not in part.dtypes:
                expected = " or ".join(map(str, part.dtypes))
                raise ValueError(f"{where}: expected dtype {expected}, got {tensor.dtype}")

    def _missing(self, name: str, suffix: str) -> ValueError:
        layer = name.removesuffix(".weight")
        return ValueError(f"{self.files[name].parent}: tensor {layer}.{suffix} is missing")
