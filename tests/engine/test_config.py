"""config.json of every supported family, in the style of transformers 4 and 5; everything else is refused by name."""

import dataclasses
import json
import os

import pytest

from batchllm.models.config import ModelConfig, resolve_model
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
LINEAR = {"rope_type": "linear", "factor": 2.0}
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
    *(
        # Layers slide from max_window_layers on, which is 28 where the key is missing.
        (
            {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 64, "use_sliding_window": True, **layers},
            {"architecture": "Qwen2ForCausalLM", "qkv_bias": True},
        )
        for layers in (
            {},
            {"max_window_layers": 2},
            {"max_window_layers": 0, "layer_types": ["full_attention", "full_attention"]},
            {"max_window_layers": 0, "sliding_window": 512},
        )
    ),
    ({"architectures": ["Qwen3ForCausalLM"]}, {"architecture": "Qwen3ForCausalLM", "qk_norm": True}),
    ({"rope_parameters": LINEAR, "rope_scaling": LINEAR}, {"rope_scaling": LINEAR}),
    ({"rope_parameters": LINEAR | {"original_max_position_embeddings": 32}}, {"rope_scaling": LINEAR}),
    ({"eos_token_id": [2, 260, 2**70, -1]}, {"eos_token_ids": (2,)}),
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
        {
            "architectures": ["Qwen2ForCausalLM"],
            "sliding_window": 64,
            "use_sliding_window": True,
            "max_window_layers": 1,
        },
        "sliding_window: expected none, got 64",
    ),
    (
        {"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": True, "sliding_window": 64, "layer_types": ["x"]},
        "layer_types: expected one for each of 2 layers",
    ),
    (
        {
            "architectures": ["Qwen3ForCausalLM"],
            "use_sliding_window": True,
            "sliding_window": 64,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        "sliding_window: expected none, got 64",
    ),
    (
        {"architectures": ["MistralForCausalLM"], "max_position_embeddings": 4097},
        "sliding_window: expected none, got 4096, which is what a config without the key means",
    ),
    (
        {"architectures": ["MistralForCausalLM"], "sliding_window": "4096"},
        "sliding_window: expected a positive integer",
    ),
    (
        {"architectures": ["MistralForCausalLM"], "sliding_window": 16, "max_position_embeddings": "512"},
        "max_position_embeddings: expected a positive integer, got '512'",
    ),
    ({"architectures": {"a": 1}}, "architectures: expected a list of names, got"),
    ({"architectures": 5}, "architectures: expected a list of names, got 5"),
    ({"architectures": [["LlamaForCausalLM"]]}, "architectures: expected a list of names"),
    ({"architectures": ["\x1b[2J"]}, r"architecture \\x1b\[2J is not supported"),
    ({"hidden_act": "\x1b]0;gelu\x07"}, r"hidden_act: expected silu, got \\x1b\]0;gelu\\x07"),
    ({"rope_parameters": "linear"}, "rope_parameters: expected an object, got 'linear'"),
    ({"rope_scaling": [1]}, r"rope_scaling: expected an object, got \[1\]"),
    ({"rope_parameters": 5}, "rope_parameters: expected an object, got 5"),
    ({"rope_parameters": {"rope_type": ["linear"]}}, r"rope type \['linear'\] is not supported"),
    (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "rope_scaling": LINEAR},
        "rope_parameters and rope_scaling differ",
    ),
    (
        {
            "architectures": ["Qwen3ForCausalLM"],
            "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}},
        },
        r"rope_parameters: settings of a kind of layer \(full_attention\) are not supported",
    ),
    ({"rope_scaling": LINEAR | {"attention_factor": 0.5}}, "rope type 'linear' has no attention_factor"),
    ({"rope_scaling": LINEAR | {"type": "llama3"}}, "rope type: rope_type is 'linear', and type 'llama3'"),
    ({"rope_scaling": LLAMA3_SCALING | {"high_freq_factor": 1.0}}, "high_freq_factor: expected more than low_freq"),
    ({"rms_norm_eps": float("inf")}, "rms_norm_eps: expected a finite number, got inf"),
    ({"rope_scaling": LINEAR | {"factor": float("nan")}}, "rope_scaling.factor: expected a finite number, got nan"),
    ({"text_config": {"a": [0, -float("inf")]}}, r"text_config.a\[1\]: expected a finite number, got -inf"),
    ({"rms_norm_eps": 1e300}, "rms_norm_eps: expected a positive number of at most 1 in float32, got 1e\\+300"),
    ({"rope_theta": 1e-300}, "rope_theta: expected a positive number in float32, got 1e-300"),
    ({"rope_scaling": {"type": "linear", "factor": 1e-320}}, "factor: expected a positive number in float32"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings: expected true or false, got 'false'"),
    ({"mlp_bias": 1}, "mlp_bias: expected true or false, got 1"),
    ({"hidden_size": 2**31}, "hidden_size: expected at most 2147483647, got 2147483648"),
    ({"eos_token_id": [True]}, "eos_token_id: expected a token id or a list of them"),
    ({"eos_token_id": {"a": 2}}, "eos_token_id: expected a token id or a list of them"),
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


@pytest.mark.parametrize(
    ("generation", "eos_token_ids"),
    [
        ({"eos_token_id": [3, 9]}, (3, 9, 2)),
        ({"eos_token_id": [2, 99999]}, (2,)),
        ({"eos_token_id": None}, (2,)),
        ({"top_k": 1}, (2,)),
    ],
)
def test_what_either_config_names_ends_a_sequence(tmp_path, generation, eos_token_ids):
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
        ("[" * 100_000, "not valid JSON: nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON: "),
        ('{"temperature": 1e999}', "temperature: expected a finite number, got inf"),
    ],
)
def test_a_broken_file_is_named(tmp_path, file, text, message):
    write(tmp_path, {})
    (tmp_path / f"{file}.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"^{tmp_path}/{file}.json: {message}"):
        ModelConfig.from_directory(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_named_and_not_waited_for(tmp_path, file, make):
    write(tmp_path, {}, generation_config="{}")
    (tmp_path / file).unlink()
    make(tmp_path / file)
    with pytest.raises(ValueError, match=f"^{tmp_path}/{file}: not a regular file$"):
        ModelConfig.from_directory(tmp_path)


def test_a_field_of_generation_config_is_named_with_its_file(tmp_path):
    write(tmp_path, {}, generation_config='{"eos_token_id": "</s>"}')
    with pytest.raises(ValueError, match=f"^{tmp_path}/generation_config.json: eos_token_id: expected a token id"):
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
