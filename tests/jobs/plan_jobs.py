"""Batch files of token ids, and just a config.json to plan them with."""

import json
from pathlib import Path
from typing import Any

from batchllm.estimate.tokenized_job import TokenizedJob
from batchllm.jobs.read_job import WeightlessModel, read_job
from batchllm.jobs.sources import open_source
from batchllm.requests import RequestLimits
from tests.jobs.batch_lines import completion_line, write_lines

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
SYSTEM, DOCUMENT_A, DOCUMENT_B = [1] * 20, [2] * 100, [3] * 60


def write_config(directory: Path, **changes: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.json"
    path.write_text(json.dumps(CONFIG | changes))
    return path


def two_documents() -> list[dict[str, Any]]:
    """Three questions of 5 tokens on each of two documents, in turns, all under one system prompt; 8 tokens each."""
    return [
        completion_line(f"{name}{question}", SYSTEM + document + [100 + question] * 5, max_tokens=8)
        for question in range(3)
        for name, document in (("a", DOCUMENT_A), ("b", DOCUMENT_B))
    ]


def tokenized(path: Path, lines: list[dict[str, Any] | bytes]) -> TokenizedJob:
    return tokenized_file(write_lines(path, lines))


def tokenized_file(path: Path) -> TokenizedJob:
    limits = RequestLimits(vocab_size=10**6, max_model_len=10**6, page_size=16, kv_cache_tokens=10**6)
    with open_source(path, chat_max_tokens=256) as source:
        job, errors = read_job(source, WeightlessModel(write_config(path.parent).parent, limits))
    assert errors == []
    return job
