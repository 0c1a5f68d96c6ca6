"""The driver on a GPU against transformers, with models of random weights: the law of its error, the same tokens from
graphs that were captured before, from a pool that runs short, and from a draw with the same seed."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from batchllm import LLM, SamplingParams
from benchmarks.gpu_day.device import Skip, attempt
from benchmarks.gpu_day.random_llm import gpu_llm
from benchmarks.gpu_day.results import DRY, left_s, record
from tests.engine import tiny
from tests.engine.teacher import our_logits, transformers_logits

WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 2048,
}
FAMILIES = {
    "Llama, head_dim 64": tiny.Family("Llama", WIDE | {"head_dim": 64}),
    "Qwen3, head_dim 128": tiny.Family("Qwen3", WIDE | {"head_dim": 128, "num_key_value_heads": 4}),
    "Llama, head_dim 128": tiny.Family("Llama", WIDE | {"head_dim": 128}),
    "Qwen2, head_dim 96": tiny.Family("Qwen2", WIDE | {"head_dim": 96}),
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"levels": 1},
    {"levels": 0},
    {"page_size": 1, "max_batch_tokens": 50},
    {"page_size": 64, "max_batch_tokens": 4096},
]
DRAWS: list[dict[str, Any]] = [{}, {"top_k": 9}, {"top_p": 0.7}, {"min_tokens": 3}, {"n": 3}]
NUM_PROMPTS, REPEATED = (3, 1) if DRY else (40, 6)
MAX_TOKENS = 3 if DRY else 40
LEAST_EQUAL = 0.8  # of the first tokens: where sums have another order, close calls of bfloat16 may fall otherwise
SECONDS_FOR_A_FAMILY = 15
if DRY:
    FAMILIES, OPTIONS = {"Llama, head_dim 64": FAMILIES["Llama, head_dim 64"]}, OPTIONS[:1]


def rms_error(ours: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    return float((torch.cat(ours) - torch.cat(reference)).square().mean().sqrt())


def tokens_of(llm: LLM, prompts: list[list[int]], params: list[SamplingParams]) -> list[list[list[int]]]:
    """Of each prompt, those of each completion."""
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [[completion.token_ids for completion in output.outputs] for output in outputs]


def share_equal(ours: list, theirs: list) -> float:
    return sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)


def check_logits(name: str, model: Any, directory: Path, prompts: list[list[int]]) -> None:
    """The RMS error of teacher-forced logits is at most twice that of transformers in bfloat16, in every setting."""
    continuations = [[(7 * i + j) % 256 + tiny.NUM_SPECIAL for j in range(3 + i % 5)] for i in range(len(prompts))]
    reference = transformers_logits(model, prompts, continuations)
    allowed = 2 * rms_error(transformers_logits(model.bfloat16(), prompts, continuations), reference)
    for options in OPTIONS:
        with attempt("engine", model=name, check=f"logits {options}"):
            error = rms_error(our_logits(gpu_llm(directory, **options), prompts, continuations), reference)
            record("engine", model=name, check=f"logits {options}", rms_error=error, allowed=allowed)
            assert error <= allowed, f"RMS error {error:.4g}, allowed {allowed:.4g}"


def check_tokens(name: str, directory: Path, prompts: list[list[int]]) -> None:
    greedy = [
        SamplingParams(temperature=0, max_tokens=2 + i % MAX_TOKENS, ignore_eos=True) for i in range(len(prompts))
    ]
    llm = gpu_llm(directory)
    first = tokens_of(llm, prompts, greedy)
    with attempt("engine", model=name, check="the same tokens from graphs captured before"):
        assert tokens_of(llm, prompts, greedy) == first
        record("engine", model=name, check="the same tokens from graphs captured before")
    short = max(map(len, prompts)) + MAX_TOKENS + 20
    for check, options in {
        "tokens without sharing": {"levels": 0},
        "tokens from a short pool": {"kv_cache_tokens": 3 * short},
    }.items():
        with attempt("engine", model=name, check=check):
            other = gpu_llm(directory, **options)
            second = tokens_of(other, prompts, greedy)
            begins_equal = share_equal([output[0][0] for output in first], [output[0][0] for output in second])
            record(
                "engine",
                model=name,
                check=check,
                equal=share_equal(first, second),
                begins_equal=begins_equal,
                preemptions=other.stats["preemptions"],
            )
            assert begins_equal >= LEAST_EQUAL, f"{begins_equal:.0%} of the outputs begin equally"
    drawn = [SamplingParams(seed=i, max_tokens=6, **DRAWS[i % len(DRAWS)]) for i in range(len(prompts))]
    with attempt("engine", model=name, check="the same draws from the same seeds"):
        assert tokens_of(llm, prompts, drawn) == tokens_of(llm, prompts, drawn)
        record("engine", model=name, check="the same draws from the same seeds")


def main() -> None:
    prompts = [prompt[: 12 if DRY else None] * REPEATED for prompt in tiny.shared_prompts(40)[:NUM_PROMPTS]]
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, family) in enumerate(FAMILIES.items()):
            with attempt("engine", model=name):
                if left_s() < SECONDS_FOR_A_FAMILY:
                    raise Skip(f"{left_s():.0f} s left")
                directory = tiny.save(family.model(), Path(folder) / str(number))
                check_logits(name, family.model(), directory, prompts)
                check_tokens(name, directory, prompts)
    sys.exit(attempt.exit_status)


if __name__ == "__main__":
    main()
