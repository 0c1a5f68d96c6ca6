"""Weights that the package compressed-tensors has compressed are read as it decompresses them."""

from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor, NaiveQuantizationCompressor, PackedQuantizationCompressor
from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file
from torch import Tensor

from batchllm.models.quantization import read_quantization
from batchllm.models.weight_schemes import PackedWeight
from batchllm.models.weights import WeightReader
from tests.engine import tiny
from tests.engine.quantized_models import Quantise, awq, save_quantized
from tests.engine.test_quantized import AWQ, assert_answers_agree

INT4 = {"num_bits": 4, "type": "int"}
GROUPS = INT4 | {"strategy": "group", "group_size": 16}
INT8 = {"num_bits": 8, "type": "int"}
FP8 = {"num_bits": 8, "type": "float"}
CASES = {
    "W4A16 groups": ("pack-quantized", GROUPS),
    "W4A16 groups, asymmetric": ("pack-quantized", GROUPS | {"symmetric": False}),
    "W4A16 groups, actorder": ("pack-quantized", GROUPS | {"actorder": "group"}),
    "W4A16 rows": ("pack-quantized", INT4 | {"strategy": "channel"}),
    "W4A16 rows, asymmetric": ("pack-quantized", INT4 | {"strategy": "channel", "symmetric": False}),
    "W8A16 groups": ("pack-quantized", INT8 | {"strategy": "group", "group_size": 16}),
    "W8A8 rows": ("int-quantized", INT8 | {"strategy": "channel"}),
    "W8A8 rows, asymmetric": ("int-quantized", INT8 | {"strategy": "channel", "symmetric": False}),
    "W8A8 one": ("int-quantized", INT8 | {"strategy": "tensor"}),
    "W8 groups": ("naive-quantized", INT8 | {"strategy": "group", "group_size": 16}),
    "FP8 rows": ("float-quantized", FP8 | {"strategy": "channel"}),
    "FP8 one": ("float-quantized", FP8 | {"strategy": "tensor"}),
    "FP8 blocks": ("float-quantized", FP8 | {"strategy": "block", "block_structure": [16, 16]}),
}


def compress(compressor: type[BaseCompressor], weights: dict[str, Any]) -> Quantise:
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)

    def quantise(out_features: int, in_features: int, draw: np.random.Generator) -> tuple[dict[str, Tensor], Tensor]:
        strategy, levels = weights["strategy"], 1 << weights["num_bits"]
        grid = {"tensor": (1,), "channel": (out_features, 1), "block": (out_features // 16, in_features // 16)}
        shape = grid.get(strategy, (out_features, in_features // 16))
        largest = 448 if weights["type"] == "float" else levels // 2
        parts = {
            "weight": torch.from_numpy(draw.normal(0, 1.5, (out_features, in_features))).float() / in_features**0.5,
            "weight_scale": torch.from_numpy(draw.uniform(3, 4.5, shape)).bfloat16() / largest / in_features**0.5,
        }
        if weights.get("symmetric") is False:
            parts["weight_zero_point"] = torch.from_numpy(draw.integers(-3, 3, shape)).to(torch.int8)
        if weights.get("actorder"):
            groups = torch.arange(in_features, dtype=torch.int32) // 16
            parts["weight_g_idx"] = groups[torch.from_numpy(draw.permutation(in_features))].contiguous()
        stored = compressor.compress(parts, scheme)
        # In float32: in the scales' bfloat16 it rounds the products, which is left to whoever asks for bfloat16.
        exact = stored | {"weight_scale": stored["weight_scale"].float()}
        return stored, compressor.decompress(exact, scheme)["weight"]

    return quantise


def settings_of(stored_as: str, weights: dict[str, Any]) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": stored_as,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_on_the_decompressed_weights(tmp_path, monkeypatch, case):
    monkeypatch.setattr("batchllm.models.weights.READ_AT_ONCE", 1)  # 32 rows
    stored_as, weights = CASES[case]
    compressor = PackedQuantizationCompressor if stored_as == "pack-quantized" else NaiveQuantizationCompressor
    model, quantise = tiny.FAMILIES["llama"].model(), compress(compressor, weights)
    assert_answers_agree(tmp_path, save_quantized(tmp_path, model, settings_of(stored_as, weights), quantise))


def test_awq_weights_are_those_that_the_package_converts(tmp_path):
    model = tiny.FAMILIES["llama"].model()
    save_quantized(tmp_path, model, AWQ, awq(16))
    converted = AutoAWQConverter(group_size=16).process(load_file(tmp_path / "model.safetensors"))
    scheme = QuantizationScheme(targets=["Linear"], weights=GROUPS | {"symmetric": False})
    layers = [name.removesuffix(".weight_packed") for name in converted if name.endswith(".weight_packed")]
    assert len(layers) == 7 * model.config.num_hidden_layers
    with WeightReader(tmp_path, torch.float32) as reader:
        for layer in layers:
            parts = {name.rpartition(".")[2]: part for name, part in converted.items() if name.startswith(f"{layer}.")}
            parts["weight_scale"] = parts["weight_scale"].float()
            expected = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
            assert torch.equal(reader.take(f"{layer}.weight", *expected.shape), expected)


def test_a_layer_has_the_scheme_of_the_target_that_names_it_best():
    groups = {
        "all": {"targets": ["Linear"], "weights": GROUPS},
        "down": {"targets": ["re:.*down_proj$"], "weights": INT4 | {"strategy": "channel"}},
        "one": {"targets": ["model.layers.1.mlp.down_proj"], "weights": INT8 | {"strategy": "channel"}},
        "activations": {"targets": ["re:.*"], "input_activations": INT8},
    }
    raw = {"quantization_config": settings_of("pack-quantized", GROUPS) | {"config_groups": groups}}
    quantization = read_quantization(raw)
    assert quantization is not None
    of_layer = {
        "model.layers.0.mlp.up_proj": PackedWeight(4, 16, is_symmetric=True),
        "model.layers.0.mlp.down_proj": PackedWeight(4, -1, is_symmetric=True),
        "model.layers.1.mlp.down_proj": PackedWeight(8, -1, is_symmetric=True),
    }
    for layer, scheme in of_layer.items():
        assert quantization.scheme(layer, "weight_packed") == scheme
        assert quantization.scheme(layer, "weight_scale_inv") is None
