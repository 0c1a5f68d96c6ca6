"""The time model: sizes of known models, and steps worked out by hand."""

import json

import numpy as np
import pytest

from batchllm.estimate.roofline import DEVICES, Device, ModelShape, step_seconds
from batchllm.estimate.simulate import Policy, SimulatedJob, simulate
from tests.planner.replay import ragged

LLAMA_3_1_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
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
}


def shape_of(tmp_path, config) -> ModelShape:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return ModelShape.from_config(tmp_path)


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
    assert shape_of(tmp_path, config).num_parameters == num_parameters


def test_smollm2_is_read_from_its_directory_or_file(smollm2):
    shape = ModelShape.from_config(smollm2)
    assert shape == ModelShape.from_config(str(smollm2 / "config.json"))
    assert shape.num_parameters == 134_515_008
    assert shape.weight_bytes == 2 * 134_515_008
    assert shape.kv_bytes_per_token == 2 * 30 * 3 * 64 * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size: expected a positive integer, got None"),
        ({"model_type": "mamba"}, "model_type: expected one of llama, .*, got 'mamba'"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "num_local_experts: mixture-of-experts"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config: quantized"),
        ({"torch_dtype": "int8"}, "dtype: expected one of bfloat16, .*, got 'int8'"),
        ({"num_key_value_heads": 5}, r"num_attention_heads \(32\) is not a multiple of num_key_value_heads \(5\)"),
    ],
)
def test_a_config_that_cannot_be_read_is_named_with_its_field(tmp_path, change, message):
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        shape_of(tmp_path, LLAMA_3_1_8B | change)


def test_seconds_are_the_sum_of_two_rooflines_and_an_overhead(tmp_path):
    model = shape_of(tmp_path, LLAMA_3_1_8B)
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
    model = ModelShape.from_config(smollm2)
    tokens, indptr = ragged([[i] * 900 for i in range(8)])
    outputs = np.full(8, 20, np.int32)
    simulation = simulate(SimulatedJob(tokens, indptr, outputs, outputs), Policy.LRU, kv_tokens=20_000)
    seconds = {name: step_seconds(simulation, model, device).sum() for name, device in DEVICES.items()}
    assert seconds["h100"] < seconds["a100"] < seconds["cpu"]
