"""The paper's preprocessing in plain Python chooses what choose_segments(method="paper") does."""

from __future__ import annotations

import random

import batchllm_ext as ext
from benchmarks.paper import pure_python_tree
from tests.planner.replay import ragged


def random_prompts(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    prompts: list[list[int]] = []
    for _ in range(rng.randint(0, 14)):
        base = rng.choice(prompts) if prompts and rng.random() < 0.8 else []
        head = base[: rng.randint(0, len(base))]
        prompts.append(head + [rng.randint(0, 2) for _ in range(rng.randint(0, 6))])
    return prompts


def test_it_saves_the_tokens_that_the_planners_paper_pass_saves() -> None:
    num_deep, num_saving = 0, 0
    for seed in range(3000):
        prompts = random_prompts(seed)
        root = pure_python_tree.build_tree(prompts)
        assert root.num_leaves() == len(prompts) or not prompts
        first_level = pure_python_tree.saved_tokens(root)
        pure_python_tree.enlarge_first_level(root)
        segments = ext.choose_segments(ext.PrefixTrie(*ragged(prompts)), method="paper")
        assert pure_python_tree.saved_tokens(root) == segments.saved_tokens, (seed, prompts)
        num_deep += segments.saved_tokens > first_level
        num_saving += segments.saved_tokens > 0
    assert num_saving > 2000
    assert num_deep > 500, "too few jobs that the bottom-up pass changes"
