"""The work of a job, against counting its prefixes one by one."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from batchllm.models.config import ModelConfig
from batchllm.models.layer_spec import AttentionSpec, LayerSpec
from batchllm.models.rope import Rotation
from benchmarks.bound import Work
from benchmarks.contestant import Request

TINY = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=32,
    hidden_size=8,
    layers=(LayerSpec(AttentionSpec(2, 1, 4, softmax_scale=0.5), Rotation(theta=5e5), intermediate_size=16),) * 2,
    max_model_len=64,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
)


def random_job(seed: int) -> list[Request]:
    rng = random.Random(seed)
    prompts: list[list[int]] = [[rng.randint(0, 2)]]
    for _ in range(rng.randint(0, 12)):
        base = rng.choice(prompts)
        prompts.append(base[: rng.randint(1, len(base))] + [rng.randint(0, 2) for _ in range(rng.randint(0, 6))])
    return [Request(prompt, rng.randint(1, 4)) for prompt in prompts]


def counted(requests: list[Request], windows: tuple[int, ...]) -> Work:
    prefixes = {tuple(r.prompt_token_ids[: n + 1]) for r in requests for n in range(len(r.prompt_token_ids))}
    decodes = [len(r.prompt_token_ids) + n for r in requests for n in range(1, r.max_tokens)]  # keys that each sees
    seen = [*map(len, prefixes), *decodes]
    return Work(
        distinct_prompt_tokens=len(prefixes),
        decode_tokens=len(decodes),
        output_tokens=sum(request.max_tokens for request in requests),
        attention_pairs={
            window: sum(min(num_keys, window + 1) if window >= 0 else num_keys for num_keys in seen)
            for window in windows
        },
    )


def test_work_is_what_counting_every_prefix_gives() -> None:
    num_sharing = 0
    for seed in range(2000):
        requests = random_job(seed)
        windows = (-1,) if seed % 2 else (3, -1)
        work = Work.of(requests, windows)
        assert work == counted(requests, windows), (seed, requests)
        num_sharing += work.distinct_prompt_tokens < sum(len(request.prompt_token_ids) for request in requests)
    assert num_sharing > 1000


def test_the_order_of_requests_does_not_matter() -> None:
    requests = random_job(7)
    assert Work.of(requests) == Work.of(requests[::-1])


def test_a_flop_is_counted_for_each_weight_and_each_pair() -> None:
    layer = 8 * 16 + 8 * 8 + 3 * 8 * 16  # qkv, o, gate and up and down
    work = Work(distinct_prompt_tokens=5, decode_tokens=3, output_tokens=4, attention_pairs={-1: 20})
    linear = 2 * (8 * 2 * layer + 4 * 32 * 8)
    attention = 20 * (2 * 4 + 2 * 4) * 2 * 2  # two products of head_dim 4, for 2 heads in 2 layers
    assert work.flop(TINY) == linear + attention
    assert work.bound_s(TINY, gflop_per_s=1e-6) == pytest.approx((linear + attention) / 1e3)


def test_a_layer_with_a_window_attends_to_what_it_shows() -> None:
    """A prompt of 5 and 2 outputs: 6 rows, that see 1 to 6 keys, and 2 at most behind a window_left of 1."""
    full = TINY.layers[0]
    mixed = replace(TINY, layers=(full, replace(full, attention=replace(full.attention, window_left=1))))
    work = Work.of([Request([1, 2, 3, 4, 5], 2)], mixed.windows)
    assert work.attention_pairs == {-1: 21, 1: 1 + 5 * 2}
    linear = 2 * (6 * TINY.num_linear_parameters + 2 * 32 * 8)
    assert work.flop(mixed) == linear + (21 + 11) * (2 * 4 + 2 * 4) * 2
