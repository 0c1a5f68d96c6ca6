"""The model and the KV pools of the experiments."""

from __future__ import annotations

from batchllm.estimate.roofline import ModelShape

LLAMA_8B = ModelShape(  # Llama 3.1, bfloat16
    num_layers=32,
    hidden_size=4096,
    intermediate_size=14_336,
    vocab_size=128_256,
    num_qo_heads=32,
    num_kv_heads=8,
    head_dim=128,
    num_parameters=8_030_261_248,
    value_bytes=2,
)
MEMORY_SHARE = 0.9  # vLLM's default gpu_memory_utilization
A100_GIB = 80


def pool_tokens(memory_gib: int) -> int:
    """KV tokens of LLAMA_8B on a GPU with this memory; activations are left out."""
    return int(MEMORY_SHARE * (memory_gib << 30) - LLAMA_8B.weight_bytes) // LLAMA_8B.kv_bytes_per_token
