"""config.json of every supported family, in the style of transformers 4 and 5; everything else is refused by name."""

import dataclasses
import json

import pytest

from batchllm.config import ModelConfig, resolve_model
from tests.engine import tiny

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
}
PARSED_LLAMA = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=260,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_qo_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_model_len=512,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=False,
    rope_scaling={"rope_type": "default"},
    eos_token_ids=(2,),
)
LLAMA3_SCALING = {key: value for key, value in tiny.LLAMA3_ROPE.items() if key != "rope_theta"}

# Fields of config.json that differ from LLAMA, and fields that then differ from PARSED_LLAMA.
PARSED = [
    ({}, {}),
    ({"rope_theta": 5e5}, {"rope_theta": 5e5}),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope_theta": 5e5}),
    ({"rope_scaling": None, "rope_theta": 5e5}, {"rope_theta": 5e5}),
    (
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ),
    (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ),
    ({"rope_scaling": LLAMA3_SCALING}, {"rope_scaling": LLAMA3_SCALING}),
    ({"rope_parameters": tiny.LLAMA3_ROPE}, {"rope_scaling": LLAMA3_SCALING}),
    ({"num_key_value_heads": None}, {"num_kv_heads": 4}),
    ({"head_dim": 16}, {"head_dim": 16}),
    ({"head_dim": None}, {}),
    ({"tie_word_embeddings": True}, {"tie_word_embeddings": True}),
    ({"attention_bias": True}, {"qkv_bias": True, "o_bias": True}),
    ({"mlp_bias": True}, {"mlp_bias": True}),
    ({"eos_token_id": [2, 5]}, {"eos_token_ids": (2, 5)}),
    ({"eos_token_id": None}, {"eos_token_ids": ()}),
    ({"hidden_act": "swish"}, {}),
    ({"architectures": ["MistralForCausalLM"]}, {"architecture": "MistralForCausalLM"}),
    ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, {"architecture": "MistralForCausalLM"}),
    ({"architectures": ["MistralForCausalLM"], "sliding_window": 512}, {"architecture": "MistralForCausalLM"}),
    ({"architectures": ["Qwen2ForCausalLM"]}, {"architecture": "Qwen2ForCausalLM", "qkv_bias": True}),
    (
        {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 64, "use_sliding_window": False},
        {"architecture": "Qwen2ForCausalLM", "qkv_bias": True},
    ),
    (
        {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 64},  # off unless use_sliding_window says so
        {"architecture": "Qwen2ForCausalLM", "qkv_bias": True},
    ),
    ({"architectures": ["Qwen3ForCausalLM"]}, {"architecture": "Qwen3ForCausalLM", "qk_norm": True}),
    (
        {"architectures": ["Qwen3ForCausalLM"], "attention_bias": True},
        {"architecture": "Qwen3ForCausalLM", "qk_norm": True, "qkv_bias": True, "o_bias": True},
    ),
]

REFUSED = [
    ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel is not supported; supported: Llama"),
    ({"architectures": []}, r"architecture \(none\) is not supported"),
    ({"architectures": None}, r"architecture \(none\) is not supported"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantization_config \(gptq\) is not supported"),
    ({"quantization_config": "fp8"}, "quantization_config .*is not supported"),
    ({"hidden_act": "gelu"}, "hidden_act: expected silu, got gelu"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1.0, got 0.5"),
    (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor: expected 1.0, got 0.5",
    ),
    ({"architectures": ["MistralForCausalLM"], "sliding_window": 64}, "sliding_window: expected none, got 64"),
    (
        {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 64, "use_sliding_window": True},
        "sliding_window: expected none, got 64",
    ),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type 'yarn' is not supported; supported: default"),
    ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported"),
    ({"rope_scaling": {"type": "linear"}}, "rope type 'linear' needs factor"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope type 'llama3' needs low_freq_factor, high_freq"),
    ({"rope_theta": "big"}, "rope_theta: expected .*, got 'big'"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps: expected .*, got 'small'"),
    ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) is not a multiple of num_key_value_heads \(3\)"),
    ({"num_hidden_layers": 0}, "num_hidden_layers: expected a positive integer, got 0"),
    ({"vocab_size": "260"}, "vocab_size: expected a positive integer, got '260'"),
    ({"intermediate_size": True}, "intermediate_size: expected a positive integer, got True"),
    ({"head_dim": 7}, "head_dim: expected .*, got 7"),
    ({"eos_token_id": "</s>"}, "eos_token_id: expected .*, got '</s>'"),
    *(
        ({name: None}, f"{name}: expected a positive integer, got None")
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
        )
    ),
]


def write(directory, changes, **files):
    raw = LLAMA | changes
    (directory / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
    for name, text in files.items():
        (directory / f"{name}.json").write_text(text)
    return directory


@pytest.mark.parametrize(("changes", "parsed"), PARSED, ids=[str(changes) for changes, _ in PARSED])
def test_every_supported_setting_is_read(tmp_path, changes, parsed):
    assert ModelConfig.from_directory(write(tmp_path, changes)) == dataclasses.replace(PARSED_LLAMA, **parsed)


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[str(changes) for changes, _ in REFUSED])
def test_what_is_not_supported_is_refused_by_file_and_field(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"^{tmp_path}/config.json: {message}"):
        ModelConfig.from_directory(write(tmp_path, changes))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_both_generations_of_transformers_say_the_same(tiny_model, tmp_path, family):
    """transformers 5 wrote `rope_parameters`; 4 wrote `rope_theta` and `rope_scaling`."""
    new_style = tiny_model(family)
    raw = json.loads((new_style / "config.json").read_text())
    scaling = raw.pop("rope_parameters")
    raw["rope_theta"] = scaling.pop("rope_theta")
    raw["rope_scaling"] = scaling if scaling["rope_type"] != "default" else None
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = ModelConfig.from_directory(new_style)
    assert config == ModelConfig.from_directory(tmp_path)
    assert config.eos_token_ids == (tiny.EOS,)
    assert config.architecture == f"{tiny.FAMILIES[family].architecture}ForCausalLM"


@pytest.mark.parametrize(("generation", "eos_token_ids"), [({"eos_token_id": [3, 9]}, (3, 9)), ({"top_k": 1}, (2,))])
def test_generation_config_decides_what_ends_a_sequence(tmp_path, generation, eos_token_ids):
    directory = write(tmp_path, {}, generation_config=json.dumps(generation))
    assert ModelConfig.from_directory(directory).eos_token_ids == eos_token_ids


@pytest.mark.parametrize("file", ["config", "generation_config"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON: "),
        ("", "not valid JSON: "),
        ("\xff", "not valid JSON: "),
        ("[1]", "expected a JSON object, got list"),
    ],
)
def test_a_broken_file_is_named(tmp_path, file, text, message):
    write(tmp_path, {})
    (tmp_path / f"{file}.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"^{tmp_path}/{file}.json: {message}"):
        ModelConfig.from_directory(tmp_path)


def test_a_directory_without_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/config.json: not found"):
        ModelConfig.from_directory(tmp_path)


def test_a_model_is_a_directory(tmp_path, monkeypatch):
    assert resolve_model(tmp_path) == resolve_model(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert resolve_model(f"~/{tmp_path.name}") == tmp_path
    (file := tmp_path / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=f"model '{file}': is a file, not a model directory"):
        resolve_model(file)
    with pytest.raises(FileNotFoundError, match=f"model '{tmp_path}/absent': no such directory"):
        resolve_model(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="model 'absent': no such directory"):
        resolve_model("absent")


def test_a_hub_id_that_cannot_be_fetched_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # HF_HUB_OFFLINE=1, read at import
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"model 'nobody/nothing': .*fetching it from the .* hub failed: \w+"):
        resolve_model("nobody/nothing")
