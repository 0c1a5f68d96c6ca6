"""The time model: sizes of known models, and steps worked out by hand."""

import json

import numpy as np
import pytest

from batchllm.estimate.roofline import DEVICES, INT8_CPU, Device, step_seconds, weight_bytes
from batchllm.estimate.simulate import Policy, SimulatedJob, simulate
from batchllm.models.config import ModelConfig
from tests.planner.replay import ragged

LLAMA_3_1_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
QWEN2_5_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
QWEN3_0_6B = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
GEMMA_2_2B = {
    "model_type": "gemma2",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
}


def config_of(tmp_path, config) -> ModelConfig:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return ModelConfig.from_file(tmp_path)


@pytest.mark.parametrize(
    ("config", "num_parameters"),
    [
        (LLAMA_3_1_8B, 8_030_261_248),
        (QWEN2_5_7B, 7_615_616_512),
        (QWEN3_0_6B, 596_049_920),
        (GEMMA_2_2B, 2_614_341_888),
    ],
)
def test_parameters_are_those_of_the_published_model(tmp_path, config, num_parameters):
    assert config_of(tmp_path, config).num_parameters == num_parameters


def test_smollm2_is_read_from_its_directory_or_file(smollm2):
    config = ModelConfig.from_file(smollm2)
    assert config == ModelConfig.from_file(str(smollm2 / "config.json"))
    assert config.num_parameters == 134_515_008
    assert config.weight_bytes == 2 * 134_515_008
    assert config.kv_bytes_per_token == 2 * 30 * 3 * 64 * 2


def test_in_8_bits_the_output_layer_is_not_the_embedding(smollm2, tmp_path):
    tied, apart = ModelConfig.from_file(smollm2), config_of(tmp_path, LLAMA_3_1_8B)
    for config in (tied, apart):
        multiplied, embedding = config.num_linear_parameters + config.num_logit_parameters, config.num_logit_parameters
        norms = (2 * len(config.layers) + 1) * config.hidden_size
        assert weight_bytes(config, INT8_CPU) == multiplied + 2 * (embedding + norms)
        assert weight_bytes(config, DEVICES["cpu"]) == config.weight_bytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size: expected a positive integer, got None"),
        ({"model_type": "mamba"}, "model_type mamba is not supported; supported: Llama.*; in plans alone: Phi3"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "num_local_experts: mixture-of-experts"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config.bits: expected 4, got None"),
        ({"torch_dtype": "int8"}, "dtype: expected one of bfloat16, .*, got 'int8'"),
        ({"num_key_value_heads": 5}, r"num_attention_heads \(32\) is not a multiple of num_key_value_heads \(5\)"),
    ],
)
def test_a_config_that_cannot_be_read_is_named_with_its_field(tmp_path, change, message):
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        config_of(tmp_path, LLAMA_3_1_8B | change)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"architectures": ["LlamaForSequenceClassification"]},
    ],
    ids=str,
)
def test_what_changes_no_size_is_refused_by_a_run_alone(tmp_path, change):
    plain = config_of(tmp_path, LLAMA_3_1_8B)
    changed = config_of(tmp_path, LLAMA_3_1_8B | change)
    assert (changed.num_parameters, changed.kv_bytes_per_token) == (plain.num_parameters, plain.kv_bytes_per_token)
    with pytest.raises(ValueError, match=r"config\.json: "):
        ModelConfig.from_directory(tmp_path)


def test_seconds_are_the_sum_of_two_rooflines_and_an_overhead(tmp_path):
    model = config_of(tmp_path, LLAMA_3_1_8B)
    per_layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336
    assert model.num_linear_parameters == 32 * per_layer
    tokens, indptr = ragged([list(range(5000))])
    outputs = np.array([2], np.int32)
    simulation = simulate(SimulatedJob(tokens, indptr, outputs, outputs), Policy.BATCHLLM, kv_tokens=8192)
    assert simulation.num_prefill_tokens.tolist() == [2048, 2048, 904, 0]

    device = Device("test", 1e14, 1e12, 2**35, 0.5, 0.25, 0.5, 0.003)
    seconds = step_seconds(simulation, model, device)
    head = 128256 * 4096
    pairs = 2048 * 2049 / 2
    first = 2 * 32 * per_layer * 2048 / 0.5e14 + 4 * 4096 * 32 * pairs / 0.25e14 + 0.003  # all of it arithmetic
    decode = 2 * (32 * per_layer + head) / 0.5e12 + 2 * 32 * 1024 * 2 * 5001 / 0.5e12 + 0.003  # all of it memory
    np.testing.assert_allclose(seconds[[0, 3]], [first, decode], rtol=1e-12)


def test_faster_devices_take_less_time(smollm2):
    model = ModelConfig.from_file(smollm2)
    tokens, indptr = ragged([[i] * 900 for i in range(8)])
    outputs = np.full(8, 20, np.int32)
    simulation = simulate(SimulatedJob(tokens, indptr, outputs, outputs), Policy.LRU, kv_tokens=20_000)
    seconds = {name: step_seconds(simulation, model, device).sum() for name, device in DEVICES.items()}
    assert seconds["h100"] < seconds["a100"] < seconds["cpu"]
