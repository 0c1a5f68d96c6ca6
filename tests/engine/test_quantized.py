"""Quantised safetensors: a model runs as transformers runs it on the weights that they stand for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from batchllm import LLM
from batchllm.models.config import ModelConfig
from batchllm.models.decoder import Model
from batchllm.models.weights import WeightReader
from tests.engine import tiny
from tests.engine.quantized_models import FP8, Quantise, awq, fp8, gptq, save_quantized
from tests.engine.teacher import assert_logits_agree, our_logits, transformers_logits
from tests.engine.test_families import TOLERANCE, job

Settings = dict[str, Any]
GPTQ: Settings = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": False}
AWQ: Settings = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}
FINE_FP8: Settings = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [20, 16]}
CASES: dict[str, tuple[Settings, Quantise]] = {
    "gptq": (GPTQ, gptq(4, 16)),
    "gptq without g_idx": (GPTQ, gptq(4, 16, g_idx=False)),
    "gptq desc_act": (GPTQ | {"desc_act": True}, gptq(4, 16, desc_act=True)),
    "gptq v2": (GPTQ | {"checkpoint_format": "gptq_v2"}, gptq(4, 16, offset=0)),
    "gptq 2 bits": (GPTQ | {"bits": 2}, gptq(2, 16)),
    "gptq 8 bits": (GPTQ | {"bits": 8}, gptq(8, 16)),
    "gptq one group": (GPTQ | {"group_size": -1}, gptq(4, -1)),
    "gptq with a short last group": (GPTQ | {"group_size": 20}, gptq(4, 20)),
    "gptq with layers left out": (GPTQ | {"dynamic": {"-:lm_head": {}}}, gptq(4, 16)),
    "awq": (AWQ, awq(16)),
    "awq one group": (AWQ | {"group_size": -1}, awq(-1)),
    "fp8 blocks": (FINE_FP8, fp8("weight_scale_inv", (20, 16))),
    "fp8 scalar": ({"quant_method": "fp8"}, fp8("weight_scale", (-1, -1), scale_ndim=0)),
    "fp8 one": ({"quant_method": "fp8"}, fp8("weight_scale", (-1, -1), scale_ndim=1)),
    "fp8 rows": ({"quant_method": "fp8"}, fp8("weight_scale", (1, -1))),
    "fbgemm": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, fp8("weight_scale", (1, -1))),
}
Q_PROJ = "model.layers.1.self_attn.q_proj"


def load(directory: Path) -> Model:
    with WeightReader(directory, torch.float32) as reader:
        return Model(ModelConfig.from_directory(directory), reader)


def rewrite(directory: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Replaces, adds, or (None) removes tensors."""
    path = directory / "model.safetensors"
    tensors = load_file(path) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def assert_answers_agree(directory: Path, reference: torch.nn.Module) -> None:
    prompts, continuations = job()
    ours = our_logits(LLM(directory, dtype="float32", page_size=4, max_batch_tokens=64), prompts, continuations)
    assert_logits_agree(ours, transformers_logits(reference, prompts, continuations), TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_on_the_dequantised_weights(tmp_path, monkeypatch, case):
    monkeypatch.setattr("batchllm.models.weights.READ_AT_ONCE", 1)  # 32 rows
    settings, quantise = CASES[case]
    family = "qwen2" if "awq" in case else "llama"  # of which one has biases
    assert_answers_agree(tmp_path, save_quantized(tmp_path, tiny.FAMILIES[family].model(), settings, quantise))


@pytest.mark.parametrize("keep", ["mlp", "layers.0"])
def test_layers_that_are_left_out_are_read_as_they_are(tmp_path, keep):
    settings = AWQ | {"modules_to_not_convert": [keep]}
    model = tiny.FAMILIES["llama"].model()
    assert_answers_agree(tmp_path, save_quantized(tmp_path, model, settings, awq(16), ("lm_head", keep)))


def test_a_quantised_head_is_read_too(tmp_path):
    settings = GPTQ | {"lm_head": True}
    reference = save_quantized(tmp_path, tiny.FAMILIES["llama"].model(), settings, gptq(4, 16), keep=())
    assert_answers_agree(tmp_path, reference)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_quantized(tmp_path, tiny.FAMILIES["llama"].model(), GPTQ, gptq(4, 16))
    return tmp_path


def test_scales_of_activations_and_of_the_kv_cache_are_passed_over(directory):
    expected = load(directory).layers[1].qkv.weight
    one = torch.ones(1)
    rewrite(directory, {f"{Q_PROJ}.input_scale": one, "model.layers.1.self_attn.k_scale": one.clone()})
    assert torch.equal(load(directory).layers[1].qkv.weight, expected)


def test_a_bias_that_nobody_announces_is_passed_over_if_it_is_zero(directory):
    rewrite(directory, {f"{Q_PROJ}.bias": torch.zeros(32)})
    load(directory)
    rewrite(directory, {f"{Q_PROJ}.bias": torch.ones(32)})
    with pytest.raises(ValueError, match=f"that config.json does not announce: {Q_PROJ}.bias$"):
        load(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qzeros": None}, "^{model}: tensor {layer}.qzeros is missing$"),
        ({"qweight": None}, "^{model}: tensor {layer}.weight is missing$"),
        (
            {"scales": torch.zeros(1, 32, dtype=torch.float16)},
            r"^{file}: tensor {layer}.scales: expected shape \[2, 32\] for a weight of \[32, 32\] by config.json "
            r"\(quantization_config\), got \[1, 32\]$",
        ),
        (
            {"scales": torch.zeros(2, 32, dtype=torch.int32)},
            "^{file}: tensor {layer}.scales: expected dtype torch.float32 or .*, got torch.int32$",
        ),
        ({"qweight": torch.zeros(4, 32)}, "tensor {layer}.qweight: expected dtype torch.int32, got torch.float32$"),
        (
            {"qweight": torch.zeros(3, 32, dtype=torch.int32)},
            r"tensor {layer}.weight: expected shape \[32, 32\] from config.json, got \[32, 24\]$",
        ),
        (
            {"qweight": torch.zeros(128, dtype=torch.int32)},
            r"tensor {layer}.qweight: expected two dimensions, got shape \[128\]$",
        ),
        (
            {"g_idx": torch.full((32,), 2, dtype=torch.int32)},
            "tensor {layer}.weight: a column is said to be in group 2, of 2$",
        ),
        ({"extra": torch.zeros(2)}, "that config.json does not announce: {layer}.extra$"),
    ],
    ids=["no zeros", "no weight", "groups", "scale dtype", "dtype", "shape", "rank", "g_idx", "unknown"],
)
def test_a_part_that_does_not_fit_is_named(directory, changes, message):
    rewrite(directory, {f"{Q_PROJ}.{suffix}": tensor for suffix, tensor in changes.items()})
    names = {"model": directory, "file": directory / "model.safetensors", "layer": Q_PROJ}
    with pytest.raises(ValueError, match=message.format(**names)):
        load(directory)


def test_another_group_size_than_the_files_is_named(directory):
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"]["group_size"] = 8
    (directory / "config.json").write_text(json.dumps(config))
    message = r"q_proj.qzeros: expected shape \[4, 4\] for a weight of \[32, 32\] by config.json .*, got \[2, 4\]$"
    with pytest.raises(ValueError, match=message):
        load(directory)


def test_fp8_without_scales_is_refused(tmp_path):
    save_quantized(tmp_path, tiny.FAMILIES["llama"].model(), FINE_FP8, fp8("weight_scale_inv", (20, 16)))
    rewrite(tmp_path, {f"{Q_PROJ}.weight_scale_inv": None})
    with pytest.raises(ValueError, match=f"tensor {Q_PROJ}.weight: dtype {FP8} is not supported$"):
        load(tmp_path)


WEIGHTS: Settings = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": True}


def compressed(group: Any = None, **settings: Any) -> Settings:
    group = {"targets": ["Linear"], "weights": WEIGHTS} if group is None else group
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": group}} | settings


def of_weights(**changes: Any) -> Settings:
    return compressed({"targets": ["Linear"], "weights": WEIGHTS | changes})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("fp8", ": expected an object, got 'fp8'"),
        ({"bits": 4}, ".quant_method: expected awq or compressed-tensors or .* or gptq, got None"),
        ({"quant_method": "bitsandbytes"}, ".quant_method: expected awq or .*, got 'bitsandbytes'"),
        (GPTQ | {"bits": 3}, ".bits: expected 2 or 4 or 8, got 3"),
        (GPTQ | {"bits": None}, ".bits: expected 2 or 4 or 8, got None"),
        (GPTQ | {"group_size": 0}, ".group_size: expected a positive integer or -1, got 0"),
        (GPTQ | {"group_size": "big"}, ".group_size: expected a positive integer or -1, got 'big'"),
        (GPTQ | {"checkpoint_format": "marlin"}, ".checkpoint_format: expected gptq or gptq_v2, got 'marlin'"),
        (GPTQ | {"is_marlin_format": True}, ".is_marlin_format: expected False, got True"),
        (GPTQ | {"dynamic": {"+:.*down.*": {"bits": 8}}}, ".dynamic: expected only layers that are left out"),
        (AWQ | {"bits": 8}, ".bits: expected 4, got 8"),
        (AWQ | {"version": "gemv"}, ".version: expected gemm or GEMM, got 'gemv'"),
        (AWQ | {"zero_point": False}, ".zero_point: expected True, got False"),
        (FINE_FP8 | {"fmt": "e5m2"}, ".fmt: expected e4m3, got 'e5m2'"),
        (FINE_FP8 | {"weight_block_size": [128]}, r".weight_block_size: expected two positive integers, got \[128\]"),
        (compressed(config_groups=None), ".config_groups: expected an object, got None"),
        (compressed(3), ".config_groups.g: expected an object, got 3"),
        (compressed({"weights": WEIGHTS}), ".config_groups.g.targets: expected a list of names, got None"),
        (compressed({"targets": ["Linear"], "weights": 4}), ".config_groups.g.weights: expected an object, got 4"),
        (
            compressed(format="nvfp4-pack-quantized"),
            ".config_groups.g.format: expected pack-quantized or",
        ),
        (compressed(sparsity_config={"format": "sparse-24-bitmask"}), ".sparsity_config: expected none, got"),
        (compressed(transform_config={"config_groups": {"R1": {}}}), ".transform_config: expected none, got"),
        (of_weights(num_bits=3), ".config_groups.g.weights.num_bits: expected 4 or 8, got 3"),
        (of_weights(strategy="tensor"), ".config_groups.g.weights.strategy: expected group or channel, got 'tensor'"),
        (of_weights(strategy="whim"), ".config_groups.g.weights.strategy: expected tensor or channel or"),
        (of_weights(type="float"), ".config_groups.g.weights.type: expected int, got 'float'"),
        (of_weights(strategy="block", block_structure=[1]), ".*.block_structure: expected two positive integers"),
        (compressed(format="int-quantized"), ".config_groups.g.weights.num_bits: expected 8, got 4"),
    ],
)
def test_a_quantization_that_is_not_supported_names_the_field(tmp_path, settings, message):
    directory = tiny.save(tiny.FAMILIES["llama"].model(), tmp_path / "model")
    directory = tiny.copy_with(directory, tmp_path / "quantised", quantization_config=settings)
    with pytest.raises(ValueError, match=f"^{directory}/config.json: quantization_config{message}"):
        load(directory)
    with pytest.raises(ValueError, match=f"^{directory}/config.json: quantization_config{message}"):
        ModelConfig.from_directory(directory)
