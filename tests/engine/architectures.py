"""Tiny models of many architectures, as transformers builds them: 4 layers, every weight drawn, windows of 8 tokens."""

from __future__ import annotations

from typing import Any

import transformers

from tests.engine import tiny

WINDOW = 8
NUM_LAYERS = 4
# What an architecture has no field for, it does without.
SETTINGS = {
    "vocab_size": tiny.VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": tiny.MAX_MODEL_LEN,
    "original_max_position_embeddings": tiny.MAX_MODEL_LEN,
    "pad_token_id": 0,
    "bos_token_id": tiny.BOS,
    "eos_token_id": tiny.EOS,
    "sliding_window": WINDOW,
    "sliding_window_pattern": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
}
ROUTED = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
SOME_WINDOWS = {"use_sliding_window": True, "max_window_layers": 2}
# By model_type, with what it has besides: those of `make test`, and those of `make test-full`.
TESTED: dict[str, dict[str, Any]] = {
    "cohere2": {},
    "exaone4": {"sliding_window_pattern": 4},
    "gemma2": {},
    "gemma3_text": {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    "glm4": {},
    "glm4_moe": ROUTED,
    "gpt2": {},
    "gpt_neox": {},
    "gpt_oss": {},
    "granite": {},
    "granite_swa": {},
    "minimax_m2": {},
    "ministral3": {},
    "mixtral": {},
    "olmo2": {},
    "olmo3": {},
    "opt": {},
    "phi": {},
    "phi3": {},
    "qwen3_moe": {},
}
TESTED_IN_FULL: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bitnet": {},
    "cohere": {},
    "dots1": ROUTED,
    "ernie4_5": {},
    "gemma": {},
    "granitemoe": {},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "llama": {},
    "mistral": {},
    "modernbert-decoder": {},
    "olmoe": {},
    "qwen2": SOME_WINDOWS,
    "qwen3": SOME_WINDOWS,
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
}


def tiny_config(model_type: str, **settings: Any) -> transformers.PretrainedConfig:
    """With `settings` besides."""
    known = transformers.AutoConfig.for_model(model_type)
    fields = {name for name in SETTINGS if hasattr(known, name)}
    derived = {name for name in fields if isinstance(getattr(type(known), name, None), property)}
    given = {name: SETTINGS[name] for name in fields - derived}
    return transformers.AutoConfig.for_model(model_type, **given | settings)


def of_architecture(model_type: str, **settings: Any) -> transformers.PreTrainedModel:
    """In float32, with attention and experts as transformers writes them."""
    config = tiny_config(model_type, **(TESTED | TESTED_IN_FULL).get(model_type, {}) | settings)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    )
    model = model.float().eval()
    tiny.draw_weights(model, seed=0)
    return model
