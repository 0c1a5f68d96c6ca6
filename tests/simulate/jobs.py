"""Small random jobs with much to share, and pools that hardly hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import batchllm_ext as ext
from batchllm.estimate.simulate import SimulatedJob
from tests.planner.replay import ragged

WINDOWS = [*[(-1,)] * 6, (0,), (1,), (3,), (8, 2), (20,), (-1, 4)]


@dataclass
class SmallJob:
    prompts: list[list[int]]
    output_tokens: list[int]
    max_output_tokens: list[int]
    pool: dict[str, Any]
    """kv_tokens, page_size and max_batch_tokens; windows of the model."""

    @property
    def window_left(self) -> int:
        """Of the layers that see most."""
        windows = self.pool["windows"]
        return -1 if -1 in windows else max(windows)

    @property
    def job(self) -> SimulatedJob:
        tokens, indptr = ragged(self.prompts)
        return SimulatedJob(
            tokens, indptr, np.array(self.output_tokens, np.int32), np.array(self.max_output_tokens, np.int32)
        )


def random_prompts(rng: np.random.Generator, num_prompts: int, run: int) -> list[list[int]]:
    """Runs of `run` equal tokens, behind heads of earlier prompts or, in some jobs, behind one of a few long heads."""
    heads = [[int(head)] * int(rng.integers(4, 12) * run) for head in range(int(rng.choice([0, 3, 5])))]
    prompts: list[list[int]] = []
    for _ in range(num_prompts):
        prompt: list[int] = []
        if heads:
            prompt = heads[rng.integers(len(heads))]
        elif prompts and rng.random() < 0.7:
            head = prompts[rng.integers(len(prompts))]
            prompt = head[: rng.integers(len(head) + 1)]
        for _ in range(rng.integers(0, 6)):
            prompt = prompt + [int(rng.integers(3))] * run
        prompts.append(prompt or [0])
    return prompts


def random_job(
    seed: int, *, min_prompts: int = 1, max_prompts: int = 16, run: int = 1, drops: bool = False
) -> SmallJob:
    """drops: the pool is for a policy that drops what windows hide. It may be too small for a whole request."""
    rng = np.random.default_rng(seed)
    prompts = random_prompts(rng, int(rng.integers(min_prompts, max_prompts + 1)), run)
    longest_output = int(rng.choice([2, 6, 30]))
    shortest_output = longest_output if rng.random() < 0.3 else 1
    outputs = [int(rng.integers(shortest_output, longest_output + 1)) for _ in prompts]
    bounds = [out + int(rng.integers(0, 6)) * int(rng.integers(2)) for out in outputs]
    if rng.random() < 0.05:
        bounds = [5000] * len(prompts)  # above what a radix scheduler reserves
    page_size = int(rng.choice([1, 2, 3, 4]))
    needs = [len(prompt) + bound - 1 for prompt, bound in zip(prompts, bounds, strict=True)]
    share = float(rng.choice([0, 0, 0.2, 0.4, 0.7, 2]))
    num_spare_pages = int(rng.choice([0, 1, 3]))
    max_batch_tokens = int(rng.choice([1, 2, 5, 9, 40]) * (1 if rng.random() < 0.5 else run))
    windows = WINDOWS[rng.integers(len(WINDOWS))]
    pool = {"page_size": page_size, "max_batch_tokens": max_batch_tokens, "windows": windows}
    case = SmallJob(prompts, outputs, bounds, pool)
    if drops and case.window_left >= 0:
        most_pages = ext.BatchPlanner.most_segment_pages(
            page_size=page_size, max_batch_tokens=max_batch_tokens, window_left=case.window_left
        )
        needs = [min(need, most_pages * page_size) for need in needs]
    num_pages = -(-max(*needs, 0, int(share * sum(needs))) // page_size) + num_spare_pages
    pool["kv_tokens"] = num_pages * page_size
    return case
