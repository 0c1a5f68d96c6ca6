"""The time model: sizes of known models, and steps worked out by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from batchllm.estimate.attention_work import num_attention_pairs
from batchllm.estimate.roofline import DEVICES, Device, step_seconds, weight_bytes
from batchllm.estimate.simulate import Policy, SimulatedJob, simulate
from batchllm.models.backend import describe_model
from batchllm.models.description import ModelDescription
from tests.planner.replay import ragged
from tests.simulate.ledger import visible

LLAMA_3_1_8B = {
    "architectures": ["LlamaForCausalLM"],
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
    "architectures": ["Qwen2ForCausalLM"],
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
    "architectures": ["Qwen3ForCausalLM"],
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
    "architectures": ["Gemma2ForCausalLM"],
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


DEVICE = Device("test", 1e14, 1e12, 2**35, 0.5, 0.25, 0.5, 0.003)


def config_of(tmp_path, config) -> ModelDescription:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return describe_model(tmp_path)


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
    config = describe_model(smollm2)
    assert config == describe_model(smollm2 / "config.json")
    assert config.num_parameters == 134_515_008
    assert config.weight_bytes == 2 * 134_515_008
    assert config.kv_bytes_per_token == 2 * 30 * 3 * 64 * 2


MIXTURE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 1000,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def test_all_experts_are_stored_in_8_bits_and_read_in_each_step(tmp_path):
    model = config_of(tmp_path, MIXTURE)
    experts = 2 * 8 * 3 * 32 * 64
    assert model.num_stored_linear_parameters - model.num_linear_parameters == experts * 6 // 8
    in_8_bits = replace(DEVICE, linear_element_bytes=1)
    multiplied = model.num_stored_linear_parameters + model.num_logit_parameters
    assert multiplied > experts
    assert weight_bytes(model, in_8_bits) == multiplied + 2 * (model.num_parameters - multiplied)
    only_reads = replace(DEVICE, bytes_per_s=1.0, bandwidth_efficiency=1.0, linear_element_bytes=1)
    outputs = np.array([2], np.int32)
    simulation = simulate(SimulatedJob(*ragged([[1, 2, 3]]), outputs, outputs), Policy.BATCHLLM, kv_tokens=8192)
    assert step_seconds(simulation, model, only_reads)[-1] == pytest.approx(multiplied, rel=1e-2)


def test_in_8_bits_the_output_layer_is_not_the_embedding(smollm2, tmp_path):
    tied, apart = describe_model(smollm2), config_of(tmp_path, LLAMA_3_1_8B)
    for config in (tied, apart):
        multiplied, embedding = config.num_linear_parameters + config.num_logit_parameters, config.num_logit_parameters
        norms = (2 * len(config.layers) + 1) * config.hidden_size
        assert weight_bytes(config, replace(DEVICE, linear_element_bytes=1)) == multiplied + 2 * (embedding + norms)
        assert weight_bytes(config, DEVICE) == config.weight_bytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size: expected a positive integer, got None"),
        (
            {"architectures": ["MambaForCausalLM"], "model_type": "mamba"},
            "architecture MambaForCausalLM does not run by the",
        ),
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
        {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
        {"partial_rotary_factor": 0.5},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"architectures": None},
    ],
    ids=str,
)
def test_both_backends_describe_the_same_sizes(tmp_path, change):
    native, other = config_of(tmp_path, LLAMA_3_1_8B), config_of(tmp_path, LLAMA_3_1_8B | change)
    assert (native.backend, other.backend) == ("native", "transformers")
    names = "num_parameters num_linear_parameters num_logit_parameters kv_bytes_per_token max_model_len windows"
    for name in names.split():
        assert getattr(native, name) == getattr(other, name), name
    assert native.attention_flops({-1: 1}.__getitem__) == other.attention_flops({-1: 1}.__getitem__)


def test_seconds_are_the_sum_of_two_rooflines_and_an_overhead(tmp_path):
    model = config_of(tmp_path, LLAMA_3_1_8B)
    per_layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336
    assert model.num_linear_parameters == 32 * per_layer
    tokens, indptr = ragged([list(range(5000))])
    outputs = np.array([2], np.int32)
    simulation = simulate(SimulatedJob(tokens, indptr, outputs, outputs), Policy.BATCHLLM, kv_tokens=8192)
    assert simulation.num_prefill_tokens.tolist() == [2048, 2048, 904, 0]

    seconds = step_seconds(simulation, model, DEVICE)
    head = 128256 * 4096
    pairs = 2048 * 2049 / 2
    first = 2 * 32 * per_layer * 2048 / 0.5e14 + 4 * 4096 * 32 * pairs / 0.25e14 + 0.003  # all of it arithmetic
    decode = 2 * (32 * per_layer + head) / 0.5e12 + 2 * 32 * 1024 * 2 * 5001 / 0.5e12 + 0.003  # all of it memory
    np.testing.assert_allclose(seconds[[0, 3]], [first, decode], rtol=1e-12)

    added = step_seconds(simulation, model, replace(DEVICE, reads_while_multiplying=False)) - seconds
    weights_s = (
        2 * 32 * per_layer / 0.5e12
    )  # beside the arithmetic of a prefill; of a decode, the arithmetic beside them
    np.testing.assert_allclose(added[[0, 3]], [weights_s, 2 * (32 * per_layer + head) / 0.5e14], rtol=1e-9)


def test_attention_of_a_layer_is_that_of_its_window(tmp_path):
    """A prompt of 10 tokens in two steps of 5, then two outputs; one layer in four sees 4 positions, the others all."""
    layer_types = ["sliding_attention", "full_attention", "full_attention", "full_attention"]
    small = {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    windows = {"use_sliding_window": True, "sliding_window": 4, "layer_types": layer_types}
    model = config_of(tmp_path, QWEN3_0_6B | small | {"head_dim": 16} | windows)
    assert model.windows == (3, -1)
    assert model.most_pages(16, 5) is None  # all K/V stays

    tokens, indptr = ragged([list(range(10))])
    outputs = np.array([2], np.int32)
    job = SimulatedJob(tokens, indptr, outputs, outputs)
    # In the window, rows 0 to 4 see 1, 2, 3, 4 and 4 positions, those from 5 on 4 each.
    pairs = [[14, 15], [20, 40], [4, 11]]
    read = [[5, 5], [8, 10], [4, 11]]
    for policy in Policy:
        simulation = simulate(job, policy, kv_tokens=64, max_batch_tokens=5, windows=model.windows)
        assert simulation.attention_pairs.tolist() == pairs
        assert simulation.kv_tokens_read.tolist() == read

    flops = 4 * 4 * 16 * np.array([14 + 3 * 15, 20 + 3 * 40, 4 + 3 * 11])
    num_bytes = 2 * 2 * 16 * 2 * np.array([5 + 3 * 5, 8 + 3 * 10, 4 + 3 * 11])
    no_weights = replace(DEVICE, flops_per_s=1.0, bytes_per_s=1e300, matmul_efficiency=1e300)
    np.testing.assert_allclose(step_seconds(simulation, model, no_weights), flops / 0.25 + 0.003, rtol=1e-12)
    no_arithmetic = replace(DEVICE, flops_per_s=1e300, bytes_per_s=1.0)
    weights = 2 * (model.num_linear_parameters + model.num_logit_parameters * (simulation.num_sampled > 0))
    np.testing.assert_allclose(
        step_seconds(simulation, model, no_arithmetic), (weights + num_bytes) / 0.5 + 0.003, rtol=1e-12
    )
    with pytest.raises(ValueError, match=r"windows: the model has 3, but the simulation \(-1,\)"):
        step_seconds(simulate(job, Policy.BATCHLLM, kv_tokens=64), model, DEVICE)


@pytest.mark.parametrize("window_left", [-1, 0, 1, 3, 20, 2**31 - 2])
def test_attention_pairs_are_counted_from_the_window(window_left):
    counts = [sum(len(visible(position, window_left)) for position in range(n)) for n in range(30)]
    assert num_attention_pairs(np.arange(30), window_left).tolist() == counts


def test_faster_devices_take_less_time(smollm2):
    model = describe_model(smollm2)
    tokens, indptr = ragged([[i] * 900 for i in range(8)])
    outputs = np.full(8, 20, np.int32)
    simulation = simulate(SimulatedJob(tokens, indptr, outputs, outputs), Policy.LRU, kv_tokens=20_000)
    seconds = {name: step_seconds(simulation, model, device).sum() for name, device in DEVICES.items()}
    assert seconds["h200"] <= seconds["h100"] < seconds["a100"]
