"""The model and the KV pools of the experiments."""

from __future__ import annotations

from batchllm.models.config import ModelConfig
from batchllm.models.layer_spec import AttentionSpec, LayerSpec
from batchllm.models.rope import Rotation

_LAYER = LayerSpec(AttentionSpec(32, 8, 128, softmax_scale=128**-0.5), Rotation(theta=5e5), intermediate_size=14_336)
LLAMA_8B = ModelConfig(  # Llama 3.1, bfloat16
    architecture="LlamaForCausalLM",
    vocab_size=128_256,
    hidden_size=4096,
    layers=(_LAYER,) * 32,
    max_model_len=131_072,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
)
MEMORY_SHARE = 0.9  # vLLM's default gpu_memory_utilization
A100_GIB = 80


def pool_tokens(memory_gib: int) -> int:
    """KV tokens of LLAMA_8B on a GPU with this memory; activations are left out."""
    return int(MEMORY_SHARE * (memory_gib << 30) - LLAMA_8B.weight_bytes) // LLAMA_8B.kv_bytes_per_token
