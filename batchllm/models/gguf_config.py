"""The config.json equivalent of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from batchllm.models.fields import naming, number, positive_int
from batchllm.models.frequencies import frequencies
from batchllm.models.gguf_file import GgufFile, read_gguf
from batchllm.models.rope import Rotation
from batchllm.text import printable

# By general.architecture; Mistral's models are also named "llama" there.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
EMBEDDING, HEAD, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
# The origin of ROPE_FACTORS in all Llamas that have them; a file holds only the factors.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# What a file of Gemma 3 leaves to who reads it.
GEMMA3_FULL_EVERY, GEMMA3_LOCAL_THETA, GEMMA3_LAYERS_OF_27B = 6, 10_000.0, 62
END_TOKENS = ("eos", "eot", "eom")  # of a sequence, a turn, a message


def gguf_config(path: Path) -> dict[str, Any]:
    """Raises FileNotFoundError, or ValueError that names the file and its missing, invalid or unsupported part."""
    gguf = read_gguf(path)
    with naming(path):
        return _config(gguf)


def gguf_architecture(metadata: dict[str, Any]) -> str:
    """One of ARCHITECTURES. Raises ValueError for another."""
    name = str(metadata.get("general.architecture"))
    if name not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise ValueError(f"general.architecture: expected one of {supported}, got {printable(f'{name:.80}')}")
    return name


def _config(gguf: GgufFile) -> dict[str, Any]:
    metadata, tensors = gguf.metadata, gguf.tensors
    name = gguf_architecture(metadata)
    if EMBEDDING not in tensors:
        raise ValueError(f"tensor {EMBEDDING} is missing")

    def size(key: str, default: int | None = None) -> int:
        return positive_int(metadata, f"{name}.{key}", default)

    num_heads, context = size("attention.head_count"), size("context_length")
    head_dim = size("attention.key_length", size("embedding_length") // num_heads)
    if (value_dim := size("attention.value_length", head_dim)) != head_dim:
        raise ValueError(f"{name}.attention.value_length: expected {head_dim}, as the keys have, got {value_dim}")
    if (window := size("attention.sliding_window", context)) < context and name != "gemma3":
        raise ValueError(f"{name}.attention.sliding_window: {window} is less than the context, which is not supported")
    theta = number(f"{name}.rope.freq_base", _shortest(metadata.get(f"{name}.rope.freq_base", 10000.0)))
    unusual = {
        "rope_scaling": None if name == "gemma3" else _rope_scaling(gguf, name, theta, head_dim),
        "partial_rotary_factor": size("rope.dimension_count", head_dim) / head_dim,
        "num_experts": metadata.get(f"{name}.expert_count", 0),
    }
    fields = {
        "architectures": [ARCHITECTURES[name]],
        "model_type": name,
        "vocab_size": tensors[EMBEDDING].shape[0],
        "hidden_size": size("embedding_length"),
        "intermediate_size": size("feed_forward_length"),
        "num_hidden_layers": size("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": size("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "rms_norm_eps": _shortest(metadata.get(f"{name}.attention.layer_norm_rms_epsilon")),
        "rope_theta": theta,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
        "tie_word_embeddings": HEAD not in tensors,
        "eos_token_id": [
            metadata[key] for token in END_TOKENS if (key := f"tokenizer.ggml.{token}_token_id") in metadata
        ],
    } | {field: value for field, value in unusual.items() if value not in (None, 0, 1)}
    return fields | _gemma3(metadata, fields, window) if name == "gemma3" else fields


def _gemma3(metadata: dict[str, Any], fields: dict[str, Any], window: int) -> dict[str, Any]:
    """Of every six layers the last sees all, at positions of its own scale."""
    pattern = metadata.get("gemma3.attention.sliding_window_pattern", GEMMA3_FULL_EVERY)
    if pattern != GEMMA3_FULL_EVERY:
        raise ValueError(f"gemma3.attention.sliding_window_pattern: expected {GEMMA3_FULL_EVERY}, got {pattern!r:.80}")
    if (kind := metadata.get("gemma3.rope.scaling.type", "none")) not in ("none", "linear"):
        raise ValueError(f"gemma3.rope.scaling.type: expected linear, got {printable(f'{kind!r:.80}')}")
    everywhere = {"rope_type": "default", "rope_theta": fields["rope_theta"]}
    if kind == "linear":
        factor = number("gemma3.rope.scaling.factor", _shortest(metadata.get("gemma3.rope.scaling.factor")))
        everywhere |= {"rope_type": "linear", "factor": factor}
    local_theta = _shortest(metadata.get("gemma3.rope.freq_base_swa", GEMMA3_LOCAL_THETA))
    num_layers, query_size = fields["num_hidden_layers"], fields["head_dim"]
    if num_layers == GEMMA3_LAYERS_OF_27B:
        query_size = fields["hidden_size"] // fields["num_attention_heads"]
    del fields["rope_theta"], fields["attention_bias"], fields["mlp_bias"]
    return {
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": query_size,
        "sliding_window": window,
        "layer_types": [
            "sliding_attention" if (layer + 1) % GEMMA3_FULL_EVERY else "full_attention" for layer in range(num_layers)
        ],
        "rope_parameters": {
            "full_attention": everywhere,
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": number("gemma3.rope.freq_base_swa", local_theta),
            },
        },
    }


def _rope_scaling(gguf: GgufFile, name: str, theta: float, head_dim: int) -> dict[str, Any] | None:
    rope_type = gguf.metadata.get(f"{name}.rope.scaling.type", "none")
    if ROPE_FACTORS in gguf.tensors:
        return _llama3_scaling(gguf, name, theta, head_dim)
    if rope_type == "none":
        return None
    # Types that the decoder does not run are refused by name.
    scaling: dict[str, Any] = {
        "rope_type": rope_type,
        "factor": _shortest(gguf.metadata.get(f"{name}.rope.scaling.factor")),
    }
    if rope_type == "yarn":
        if unread := sorted(key for key in gguf.metadata if key.startswith(f"{name}.rope.scaling.yarn_")):
            raise ValueError(f"{unread[0]} is not supported")
        original = f"{name}.rope.scaling.original_context_length"
        scaling["original_max_position_embeddings"] = positive_int(gguf.metadata, original)
    return scaling


def _llama3_scaling(gguf: GgufFile, name: str, theta: float, head_dim: int) -> dict[str, Any]:
    """The settings, recovered from their effect on the frequencies. Raises ValueError if they do not explain it."""
    tensor, default = gguf.tensors[ROPE_FACTORS], LLAMA3["original_max_position_embeddings"]
    with tensor.file.open("rb") as file:
        factors = tensor.rows(file, 0, tensor.num_rows).ravel()
    original = positive_int(gguf.metadata, f"{name}.rope.scaling.original_context_length", int(default))
    found = {**LLAMA3, "factor": float(factors.max()), "original_max_position_embeddings": original}
    expected = frequencies(Rotation(theta), head_dim) / frequencies(Rotation(theta, "llama3", found), head_dim)
    if factors.shape != expected.shape or not np.allclose(factors, expected.numpy(), rtol=1e-4):
        raise ValueError(f"tensor {ROPE_FACTORS}: expected factors of rope type 'llama3', got {factors.tolist()!r:.80}")
    return {"rope_type": "llama3", **found}


def _shortest(value: Any) -> Any:
    """A float32 in its shortest form: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
