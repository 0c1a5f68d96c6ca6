"""A Hugging Face model directory: where it is, what its config.json says, what we support of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROPE_TYPES = ("default", "linear", "llama3")
HUB_FILES_BUT_WEIGHTS = ["*.json", "*.jinja", "tokenizer*", "*.model"]


@dataclass(frozen=True)
class ModelConfig:
    """The decoder that `batchllm.model` runs. Sizes are in elements."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope_scaling: dict[str, Any] = field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_directory(cls, directory: Path) -> ModelConfig:
        """Reads config.json (and generation_config.json for the end-of-sequence ids).

        Raises ValueError where the file, the architecture or a setting is not supported, naming it.
        """
        path = directory / "config.json"
        raw = read_json(path)
        generation_path = directory / "generation_config.json"
        generation = read_json(generation_path) if generation_path.exists() else {}
        try:
            return _parse(raw, generation)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def resolve_model(model: str | Path, *, weights: bool = True) -> Path:
    """The directory of `model`: a local one, or a Hugging Face hub id fetched (with its weights, or without) into the
    hub's cache.

    Raises FileNotFoundError that says what was looked for and where.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        kind = "is a file, not a model directory" if path.exists() else "no such directory"
        raise FileNotFoundError(f"model {str(model)!r}: {kind}")
    from huggingface_hub import snapshot_download

    try:
        patterns = [*HUB_FILES_BUT_WEIGHTS, *(["*.safetensors"] if weights else [])]
        return Path(snapshot_download(str(model), allow_patterns=patterns))
    except Exception as error:
        raise FileNotFoundError(
            f"model {str(model)!r}: no such directory, and fetching it from the Hugging Face hub failed: "
            f"{type(error).__name__}: {error}"
        ) from error


def model_files(model: str | Path) -> list[Path]:
    """What is read of a local model, or of its config.json alone; nothing of a hub id."""
    path = Path(model).expanduser()
    if path.is_file():
        return [path]
    patterns = (*HUB_FILES_BUT_WEIGHTS, "*.safetensors")
    return [file for pattern in patterns for file in path.glob(pattern) if file.exists()]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; FileNotFoundError or ValueError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: not found; a model directory has a config.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _parse(raw: dict[str, Any], generation: dict[str, Any]) -> ModelConfig:
    architectures = raw.get("architectures") or ["(none)"]
    architecture = architectures[0]
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture {architecture} is not supported; supported: {', '.join(ARCHITECTURES)}")
    _refuse_unsupported(raw)

    num_qo_heads = positive_int(raw, "num_attention_heads")
    hidden_size = positive_int(raw, "hidden_size")
    num_kv_heads = positive_int(raw, "num_key_value_heads", num_qo_heads)
    if num_qo_heads % num_kv_heads:
        raise ValueError(
            f"num_attention_heads ({num_qo_heads}) is not a multiple of num_key_value_heads ({num_kv_heads})"
        )
    head_dim = positive_int(raw, "head_dim", hidden_size // num_qo_heads)
    if head_dim % 2:
        raise ValueError(f"head_dim: expected an even number, got {head_dim}")
    rope_theta, rope_scaling = _rope(raw)
    attention_bias = bool(raw.get("attention_bias", False))
    qwen2 = architecture == "Qwen2ForCausalLM"
    return ModelConfig(
        architecture=architecture,
        vocab_size=positive_int(raw, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=positive_int(raw, "intermediate_size"),
        num_layers=positive_int(raw, "num_hidden_layers"),
        num_qo_heads=num_qo_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_model_len=positive_int(raw, "max_position_embeddings"),
        rms_norm_eps=_positive_number("rms_norm_eps", raw.get("rms_norm_eps", 1e-6)),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=qwen2 or attention_bias,
        o_bias=attention_bias and not qwen2,
        mlp_bias=bool(raw.get("mlp_bias", False)),
        qk_norm=architecture == "Qwen3ForCausalLM",
        eos_token_ids=_token_ids(generation.get("eos_token_id", raw.get("eos_token_id"))),
    )


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    """Settings that would change the result silently if they were ignored."""
    if quantization := raw.get("quantization_config"):
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else quantization
        raise ValueError(f"quantization_config ({method}) is not supported; use float32, float16 or bfloat16 weights")
    if (activation := raw.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise ValueError(f"hidden_act: expected silu, got {activation}")
    for settings in (raw, raw.get("rope_parameters") or {}):
        if (rotated := settings.get("partial_rotary_factor", 1.0)) != 1.0:
            raise ValueError(f"partial_rotary_factor: expected 1.0, got {rotated}")
    window = raw.get("sliding_window")
    uses_window = raw.get("use_sliding_window", raw["architectures"][0] == "MistralForCausalLM")
    if uses_window and window is not None and window < raw.get("max_position_embeddings", 0):
        raise ValueError(f"sliding_window: expected none, got {window}")


def _rope(raw: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """(theta, scaling) from `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling` (4)."""
    scaling = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    theta = scaling.pop("rope_theta", raw.get("rope_theta", 10000.0))
    rope_type = scaling.pop("rope_type", scaling.pop("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise ValueError(f"rope type {rope_type!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    needed = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }[rope_type]
    if missing := [name for name in needed if name not in scaling]:
        raise ValueError(f"rope type {rope_type!r} needs {', '.join(missing)}")
    factors = {name: _positive_number(name, scaling[name]) for name in needed}
    return _positive_number("rope_theta", theta), {"rope_type": rope_type, **factors}


def positive_int(raw: dict[str, Any], name: str, default: int | None = None) -> int:
    """raw[name], or the default where that is missing or null; ValueError that names the field."""
    value = raw.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    return value


def _positive_number(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        raise ValueError(f"{name}: expected a positive number, got {value!r}")
    return float(value)


def _token_ids(value: Any) -> tuple[int, ...]:
    ids = () if value is None else (value,) if isinstance(value, int) else value
    if not isinstance(ids, (list, tuple)) or not all(isinstance(token, int) for token in ids):
        raise ValueError(f"eos_token_id: expected a token id or a list of them, got {value!r}")
    return tuple(ids)
