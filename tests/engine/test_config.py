"""config.json of every supported family, in the style of transformers 4 and 5; everything else is refused by name."""

import dataclasses
import json
import math
import os
from typing import Any

import pytest

from batchllm.models.config import ModelConfig, resolve_model
from batchllm.models.layer_spec import AttentionSpec, LayerSpec
from batchllm.models.rope import Rotation
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
ATTENTION = AttentionSpec(num_qo_heads=4, num_kv_heads=2, head_dim=8, softmax_scale=1 / math.sqrt(8))
LAYER = LayerSpec(ATTENTION, Rotation(theta=10000.0), intermediate_size=48)
PARSED_LLAMA = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=260,
    hidden_size=32,
    layers=(LAYER, LAYER),
    max_model_len=512,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    eos_token_ids=(2,),
)
LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {key: value for key, value in tiny.YARN.items() if key != "rope_theta"}
LLAMA3_SCALING = {key: value for key, value in tiny.LLAMA3_ROPE.items() if key != "rope_theta"}
LLAMA3_FACTORS = {key: value for key, value in LLAMA3_SCALING.items() if key != "rope_type"}
MISTRAL, QWEN2 = {"architectures": ["MistralForCausalLM"]}, {"architectures": ["Qwen2ForCausalLM"]}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "head_dim": 8}
SMOLLM3 = {"architectures": ["SmolLM3ForCausalLM"]}
SLIDING = {"use_sliding_window": True, "sliding_window": 64}


def layers(*windows: int | None, attention: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Layers as LAYER but for these fields; a window counts the row itself."""
    heads = dataclasses.replace(ATTENTION, **attention or {})
    return {
        "layers": tuple(
            dataclasses.replace(
                LAYER, attention=dataclasses.replace(heads, window_left=-1 if window is None else window - 1), **changes
            )
            for window in windows or (None, None)
        )
    }


def rotated(theta: float, rope_type: str = "default", **factors: float) -> dict[str, Any]:
    return layers(rotation=Rotation(theta, rope_type, factors))


def family(architecture: str, *windows: int | None, **changes: Any) -> dict[str, Any]:
    return {"architecture": f"{architecture}ForCausalLM", **layers(*windows, **changes)}


def smollm3(*rotated: bool, windows: tuple[int | None, ...] = ()) -> dict[str, Any]:
    fields = family("SmolLM3", *(windows or [None] * len(rotated)))
    rotations = [Rotation(theta=2e6) if one else None for one in rotated]
    specs = [dataclasses.replace(spec, rotation=one) for spec, one in zip(fields["layers"], rotations, strict=True)]
    return fields | {"layers": tuple(specs), "tie_word_embeddings": True}


# Fields of config.json that differ from LLAMA, and fields that then differ from PARSED_LLAMA.
PARSED = [
    ({}, {}),
    ({"rope_theta": 5e5}, rotated(5e5)),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, rotated(5e5)),
    ({"rope_scaling": None, "rope_theta": 5e5}, rotated(5e5)),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e5}, rotated(5e5, "linear", factor=2.0)),
    (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
        rotated(5e5, "linear", factor=2.0),
    ),
    ({"rope_scaling": LLAMA3_SCALING}, rotated(1e4, "llama3", **LLAMA3_FACTORS)),
    ({"rope_parameters": tiny.LLAMA3_ROPE}, rotated(1e4, "llama3", **LLAMA3_FACTORS)),
    ({"num_key_value_heads": None}, layers(attention={"num_kv_heads": 4})),
    ({"head_dim": 16}, layers(attention={"head_dim": 16, "softmax_scale": 0.25})),
    ({"head_dim": None}, {}),
    ({"num_hidden_layers": 3}, layers(None, None, None)),
    ({"tie_word_embeddings": True}, {"tie_word_embeddings": True}),
    ({"dtype": "float32"}, {"dtype": "float32"}),
    ({"torch_dtype": "float16"}, {"dtype": "float16"}),
    ({"attention_bias": True}, layers(qkv_bias=True, o_bias=True)),
    ({"mlp_bias": True}, layers(mlp_bias=True)),
    ({"eos_token_id": [2, 5]}, {"eos_token_ids": (2, 5)}),
    ({"eos_token_id": None}, {"eos_token_ids": ()}),
    ({"hidden_act": "swish"}, {}),
    ({"sliding_window": 64, "use_sliding_window": True}, {}),  # Llama has none
    # A layer slides where a context may be longer than its window, which is 4,096 where the key is missing.
    (MISTRAL, family("Mistral")),
    (MISTRAL | {"sliding_window": 512}, family("Mistral")),
    (MISTRAL | {"sliding_window": 511}, family("Mistral", 511, 511)),
    (MISTRAL | {"sliding_window": 1}, family("Mistral", 1, 1)),
    (MISTRAL | {"max_position_embeddings": 4096}, family("Mistral") | {"max_model_len": 4096}),
    (MISTRAL | {"max_position_embeddings": 4097}, family("Mistral", 4096, 4096) | {"max_model_len": 4097}),
    (MISTRAL | {"attention_bias": True, "mlp_bias": True}, family("Mistral")),  # as transformers
    (QWEN2, family("Qwen2", qkv_bias=True)),
    (QWEN2 | {"sliding_window": 64, "use_sliding_window": False}, family("Qwen2", qkv_bias=True)),
    (QWEN2 | {"sliding_window": 64}, family("Qwen2", qkv_bias=True)),  # off unless use_sliding_window says so
    # Layers slide from max_window_layers on, which is 28 where the key is missing, or those that layer_types names.
    (QWEN2 | SLIDING, family("Qwen2", qkv_bias=True)),
    (QWEN2 | SLIDING | {"max_window_layers": 2}, family("Qwen2", qkv_bias=True)),
    (QWEN2 | SLIDING | {"max_window_layers": 1}, family("Qwen2", None, 64, qkv_bias=True)),
    (QWEN2 | SLIDING | {"max_window_layers": 0}, family("Qwen2", 64, 64, qkv_bias=True)),
    (QWEN2 | SLIDING | {"num_hidden_layers": 29}, family("Qwen2", *[None] * 28, 64, qkv_bias=True)),
    (QWEN2 | SLIDING | {"max_window_layers": 0, "sliding_window": 512}, family("Qwen2", qkv_bias=True)),
    (
        QWEN2 | SLIDING | {"max_window_layers": 0, "layer_types": ["full_attention", "full_attention"]},
        family("Qwen2", qkv_bias=True),
    ),
    (QWEN3, family("Qwen3", qk_norm=True)),
    (
        {"architectures": ["Qwen3ForCausalLM"]},
        family("Qwen3", qk_norm=True, attention={"head_dim": 128, "softmax_scale": 1 / math.sqrt(128)}),
    ),
    (
        QWEN3 | SLIDING | {"layer_types": ["sliding_attention", "full_attention"]},
        family("Qwen3", 64, None, qk_norm=True),
    ),
    (QWEN3 | {"attention_bias": True}, family("Qwen3", qk_norm=True, qkv_bias=True, o_bias=True)),
    (SMOLLM3, smollm3(True, True)),  # every fourth layer is not rotated
    (SMOLLM3 | {"num_hidden_layers": 5}, smollm3(True, True, True, False, True)),
    (SMOLLM3 | {"no_rope_layer_interval": 2}, smollm3(True, False)),
    (SMOLLM3 | {"no_rope_layers": [0, 1, 1]}, smollm3(False, True)),
    (SMOLLM3 | {"no_rope_layers": [0, 1], "use_sliding_window": True}, smollm3(False, True)),
    (SMOLLM3 | SLIDING | {"no_rope_layers": [0, 1]}, smollm3(False, True, windows=(64, None))),
    (
        SMOLLM3 | SLIDING | {"no_rope_layers": [0, 1], "layer_types": ["full_attention", "sliding_attention"]},
        smollm3(False, True, windows=(None, 64)),
    ),
    ({"rope_parameters": LINEAR, "rope_scaling": LINEAR}, rotated(1e4, "linear", factor=2.0)),
    (
        {"rope_parameters": LINEAR | {"original_max_position_embeddings": 32}},
        rotated(1e4, "linear", factor=2.0),
    ),
    ({"rope_scaling": YARN}, rotated(1e4, "yarn", factor=4.0, original_max_position_embeddings=64.0)),
    (
        {"rope_scaling": YARN | {"beta_fast": 8, "mscale": None}},
        rotated(1e4, "yarn", factor=4.0, original_max_position_embeddings=64.0, beta_fast=8.0),
    ),
    ({"eos_token_id": [2, 260, 2**70, -1]}, {"eos_token_ids": (2,)}),
]

REFUSED = [
    ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel is not supported; supported: Llama"),
    ({"architectures": []}, r"architecture \(none\) is not supported"),
    ({"architectures": None}, r"architecture \(none\) is not supported"),
    (
        {"quantization_config": {"quant_method": "gptq", "bits": 5}},
        "quantization_config.bits: expected 2 or 4 or 8, got 5",
    ),
    ({"quantization_config": "fp8"}, "quantization_config: expected an object, got 'fp8'"),
    ({"hidden_act": "gelu"}, "hidden_act: expected silu, got gelu"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1.0, got 0.5"),
    (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor: expected 1.0, got 0.5",
    ),
    (
        QWEN3 | SLIDING | {"layer_types": ["full_attention"]},
        "layer_types: expected one for each of 2 layers, got",
    ),
    (
        QWEN3 | SLIDING | {"layer_types": ["full_attention", "\x1b[2J"]},
        r"layer_types\[1\]: expected one of full_attention, sliding_attention, got '\\x1b\[2J'",
    ),
    (QWEN3 | SLIDING | {"layer_types": [["a"], {}]}, r"layer_types\[0\]: expected one of .*, got \['a'\]"),
    (QWEN2 | SLIDING | {"max_window_layers": "1"}, "max_window_layers: expected an integer, got '1'"),
    (QWEN2 | SLIDING | {"sliding_window": 0}, "sliding_window: expected a positive integer, got 0"),
    (SMOLLM3 | {"no_rope_layers": [1]}, r"no_rope_layers: expected 0 or 1 for each of 2 layers, got \[1\]"),
    (SMOLLM3 | {"no_rope_layers": [1, "0"]}, "no_rope_layers: expected 0 or 1 for each of 2 layers"),
    ({"num_hidden_layers": 10_001}, "num_hidden_layers: expected at most 10000, got 10001"),
    ({"dtype": "int8"}, "dtype: expected one of bfloat16, .*, got 'int8'"),
    ({"num_local_experts": 8}, "num_local_experts: mixture-of-experts models are not supported"),
    (
        {"architectures": ["Gemma2ForCausalLM"]},
        "architecture Gemma2ForCausalLM is not supported; supported: LlamaForCausalLM, Mistral",
    ),
    ({"architectures": ["LlamaModel"], "model_type": "llama"}, "architecture LlamaModel is not supported"),
    ({"architectures": None, "model_type": "llama"}, "model_type llama is not supported"),
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
    ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope type 'dynamic' is not supported; supported: default"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type 'yarn' needs original_max_position_embeddings"),
    ({"rope_scaling": YARN | {"truncate": False}}, "rope type 'yarn' has no truncate"),
    ({"rope_scaling": YARN | {"beta_fast": 0}}, "beta_fast: expected a positive number"),
    ({"rope_scaling": YARN, "rope_theta": 1}, "rope_theta: expected more than 1 with rope type 'yarn', got 1"),
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
    with pytest.raises(
        FileNotFoundError, match=r"model 'nobody/nothing': .*fetching it from the .* hub failed; .*\(\w+: .*\)$"
    ):
        resolve_model("nobody/nothing")


@pytest.mark.parametrize(
    ("factors", "scale"),
    [
        ({}, 0.1 * math.log(4) + 1),
        ({"factor": 0.5}, 1.0),
        ({"attention_factor": 1.3}, 1.3),
        ({"mscale": 2.0}, 0.1 * math.log(4) + 1),
        ({"mscale": 2.0, "mscale_all_dim": 0.5}, (0.2 * math.log(4) + 1) / (0.05 * math.log(4) + 1)),
    ],
    ids=str,
)
def test_yarn_scales_what_it_turns(factors, scale):
    assert Rotation(1e4, "yarn", {"factor": 4.0} | factors).scale == pytest.approx(scale, rel=1e-12)
    assert Rotation(1e4).scale == 1.0
