"""GGUF files of tiny models, written by the package gguf as llama.cpp's converter would, and the weights in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type

from tests.engine import tiny

ARCHITECTURES = {
    **{"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "smollm3": "smollm3"},
    "gemma3_text": "gemma3",
}
# What has blocks of 256 needs rows of as many elements.
WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
SCALES_AT = {Type.Q2_K: (80, 82), Type.Q3_K: (108,), Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,)}
SCALE = {Type.Q2_K: 0.01, Type.Q3_K: 1e-3, Type.Q4_K: 2e-4, Type.Q5_K: 1e-4, Type.Q6_K: 5e-5}

Quantise = Callable[[str, np.ndarray], tuple[np.ndarray, Type]]  # (name, float32) -> what is stored


def of_type(kind: Type, seed: int = 0) -> Quantise:
    """Matrices as blocks of that type, and vectors as they are. gguf cannot make blocks of SCALES_AT's types; these are
    drawn: any bytes are a block, if its scales are finite."""
    generator = np.random.default_rng(seed)

    def quantise(name: str, weight: np.ndarray) -> tuple[np.ndarray, Type]:
        if weight.ndim == 1:
            return weight, Type.F32
        if kind not in SCALES_AT:
            return gguf.quantize(weight, kind), kind
        num_elements, num_bytes = gguf.GGML_QUANT_SIZES[kind]
        blocks = generator.integers(0, 256, (*weight.shape[:-1], weight.shape[-1] // num_elements, num_bytes), np.uint8)
        for place, factor in zip(SCALES_AT[kind], (1.0, 7.5), strict=False):
            scale = np.float16([SCALE[kind] * factor]).view(np.uint8)
            blocks[..., place : place + 2] = scale
        return blocks.reshape(*weight.shape[:-1], -1), kind

    return quantise


def side_by_side(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """The rows of q and k in the order in which the converter stores a Llama's."""
    halves = weight.reshape(num_heads, 2, len(weight) // num_heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    model: transformers.PreTrainedModel,
    quantise: Quantise | None = None,
    *,
    metadata: Mapping[str, Any] = {},
    tokenizer: bool = True,
    max_tensors_per_file: int = 0,
) -> transformers.PreTrainedModel:
    """Writes `model`, and gives it the weights that the file holds. `metadata` replaces, or (None) leaves out."""
    config, quantise = model.config, quantise or of_type(Type.F32)
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=max_tensors_per_file)
    for key, value in (_metadata(architecture, config) | (_tokenizer() if tokenizer else {}) | metadata).items():
        if value is not None:
            _add(writer, key, value)
    names = gguf.get_tensor_name_map(_model_arch(architecture), config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    weights = model.state_dict()
    for name, weight in weights.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        rows, num_heads = weight.numpy(), heads.get(name.split(".")[-2])
        if paired := architecture in ("llama", "smollm3") and num_heads is not None:
            rows = side_by_side(rows, num_heads)
        added = float(architecture == "gemma3" and name.endswith("norm.weight"))
        blocks, kind = quantise(name, np.ascontiguousarray(rows) + np.float32(added))
        stored = gguf.dequantize(blocks, kind).reshape(weight.shape) - np.float32(added)
        if paired:
            stored = stored[np.argsort(side_by_side(np.arange(len(stored)), num_heads))]
        weight.copy_(torch.from_numpy(stored))
        base, _, suffix = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(base)}.{suffix}", blocks, raw_dtype=kind)
    if (rope := _rope(config))["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(rope, config.head_dim))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _metadata(architecture: str, config: Any) -> dict[str, Any]:
    of_model = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": _rope(config)["rope_theta"],
    }
    if architecture == "gemma3":
        of_model["attention.sliding_window"] = config.sliding_window
    if (head_dim := getattr(config, "head_dim", None)) is not None:
        of_model |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if (rope := _rope(config))["rope_type"] in ("linear", "yarn"):
        of_model |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] in ("llama3", "yarn"):
        of_model["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    return {f"{architecture}.{key}": value for key, value in of_model.items()}


def _rope(config: Any) -> dict[str, Any]:
    """Of the layers that see all."""
    rope: dict[str, Any] = config.rope_parameters
    return rope.get("full_attention", rope)


def _tokenizer() -> dict[str, Any]:
    """tiny's, which opens a text with <bos>."""
    alphabet = sorted(tiny.pre_tokenizers.ByteLevel.alphabet())
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*tiny.SPECIAL_TOKENS, *alphabet],
        "tokenizer.ggml.token_type": [3] * tiny.NUM_SPECIAL + [1] * len(alphabet),
        "tokenizer.ggml.scores": [0.0] * tiny.VOCAB_SIZE,  # which, of single letters, makes no merges
        "tokenizer.ggml.bos_token_id": tiny.BOS,
        "tokenizer.ggml.eos_token_id": tiny.EOS,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": tiny.CHAT_TEMPLATE,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)


def _model_arch(architecture: str) -> gguf.MODEL_ARCH:
    return next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)


def _llama3_factors(rope: Mapping[str, Any], head_dim: int) -> np.ndarray:
    """By wavelengths, as the converter has them."""
    factors = []
    for exponent in range(0, head_dim, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (exponent / head_dim)
        turns = rope["original_max_position_embeddings"] / wavelength
        smooth = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
        smooth = min(max(smooth, 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.float32(factors)
