"""The model and the jobs of the stages that run whole jobs, small in a dry run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from benchmarks.contestant import Request
from benchmarks.gpu_day.results import DRY
from benchmarks.workloads import WORKLOADS, Workload

QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
TINY = {
    "vocab_size": 49152,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
}

# The paper's microbenchmark has 400 groups.
DEGREE_16 = Workload(seed=11, groups=20, readers=16, prefix=2000, own=200, output=(100, 100))
# Few enough for engines that share nothing.
CONTEST = "degree 16, 6 groups"
JOBS = {
    CONTEST: replace(DEGREE_16, groups=6),
    "degree 16, 20 groups": DEGREE_16,
    "W1": WORKLOADS["W1"],
    "W3": WORKLOADS["W3"],
    "W2": WORKLOADS["W2"],
    "W4": WORKLOADS["W4"],
    "256 samples": Workload(seed=12, groups=1, readers=256, prefix=1000, own=0, output=(200, 200)),
}


def write_model(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps(QWEN3_8B | (TINY if DRY else {})))


def requests(name: str) -> list[Request]:
    workload = JOBS[name]
    if DRY:
        workload = replace(
            workload,
            groups=min(workload.groups, 2),
            readers=min(workload.readers, 3),
            prefix=workload.prefix // 64,
            own=workload.own // 16,
            system=workload.system // 64,
            output=(3, 4),
        )
    return [Request(row["prompt_token_ids"], row["max_tokens"], row["group"]) for row in workload.rows()]
