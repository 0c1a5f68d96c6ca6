"""Teacher forcing: the logits for continuations that the test chooses, ours and transformers'."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
import torch

import batchllm_ext as ext
from batchllm import LLM, SamplingParams
from batchllm.engine.engine import Engine
from batchllm.engine.engine_requests import EngineRequest
from batchllm.request_table import End
from batchllm.sampling.rules import LogitsRule, Rows

Tokens = list[int]


@dataclass
class Forced(LogitsRule):
    """Records the logits of every row, and lets the given continuation be drawn; the request ends with it."""

    needs_tokens_before_draw: ClassVar[bool] = False
    continuations: list[Tokens]  # by request
    logits: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)  # by request and place in its output

    def concerns(self, rows: Rows) -> np.ndarray:
        return np.ones(len(rows), bool)

    def before_draw(self, logits: torch.Tensor, rows: Rows) -> None:
        for row, (request, place) in enumerate(self._places(rows)):
            assert (request, place) not in self.logits, f"request {request} sampled token {place} twice"
            self.logits[request, place] = logits[row].to("cpu", torch.float32, copy=True)
            logits[row] = -torch.inf
            logits[row, self.continuations[request][place]] = 0

    def after_draw(self, rows: Rows, tokens: np.ndarray) -> list[tuple[int, End]]:
        places = enumerate(self._places(rows))
        return [(row, End()) for row, (request, place) in places if place + 1 == len(self.continuations[request])]

    def _places(self, rows: Rows) -> list[tuple[int, int]]:
        return list(zip(rows.request_ids.tolist(), rows.num_output_tokens.tolist(), strict=True))


def new_engine(llm: LLM, rules: list[LogitsRule]) -> Engine:
    """On the same model and runner, with the same options, and a pool and rules of its own."""
    return Engine(
        llm.engine.model,
        llm.engine.runner,
        rules,
        levels=llm.options.levels,
        page_size=llm.options.page_size,
        kv_cache_tokens=llm.engine.kv_cache.num_pages * llm.options.page_size,
        max_batch_tokens=llm.options.max_batch_tokens,
    )


def our_logits(llm: LLM, prompts: list[Tokens], continuations: list[Tokens]) -> list[torch.Tensor]:
    """For each prompt, float32 [len(continuation), vocab_size]: the logits that each of its tokens is drawn from."""
    forced = Forced(continuations)
    engine = new_engine(llm, [forced])
    params = SamplingParams(temperature=0, max_tokens=None)
    engine.add(
        [
            EngineRequest(np.array(prompt, np.int32), params, [0], len(continuation))
            for prompt, continuation in zip(prompts, continuations, strict=True)
        ]
    )
    finished: list[int] = []
    while (step := engine.step()) is not None:
        finished += [done.request_id for done in step.finished]
    assert sorted(finished) == list(range(len(prompts))), "every request is answered exactly once"
    return [
        torch.stack([forced.logits[request, place] for place in range(len(continuation))])
        for request, continuation in enumerate(continuations)
    ]


def plan_for_short_outputs(monkeypatch: pytest.MonkeyPatch) -> list[ext.BatchPlanner]:
    """Every request is expected to end with its first token, so more is admitted than can end, and some are preempted.
    Returns the planners that are made from now on; the list grows."""
    planners = []

    class PlansForShortOutputs(ext.BatchPlanner):
        def add_requests(self, *arrays, **options):
            planners.append(self)
            ones = np.ones_like(options["max_output_tokens"])
            return super().add_requests(*arrays, **options | {"expected_output_tokens": ones})

    monkeypatch.setattr(ext, "BatchPlanner", PlansForShortOutputs)
    return planners


@torch.inference_mode()
def transformers_logits(model, prompts: list[Tokens], continuations: list[Tokens]) -> list[torch.Tensor]:
    """The same from a transformers model, one prompt at a time, without any cache; float32."""
    logits = []
    for prompt, continuation in zip(prompts, continuations, strict=True):
        ids = torch.tensor([prompt + continuation[:-1]])
        logits.append(model(ids, use_cache=False).logits[0, len(prompt) - 1 :].float())
    return logits


def assert_logits_agree(ours: list[torch.Tensor], theirs: list[torch.Tensor], tolerance: float) -> None:
    """max|ours - theirs| <= tolerance * max|theirs|, for every prompt; names the first that fails."""
    for request, (mine, reference) in enumerate(zip(ours, theirs, strict=True)):
        assert mine.shape == reference.shape
        assert mine.isfinite().all(), f"request {request}: logits are not finite"
        error = (mine - reference).abs().amax(dim=-1) / reference.abs().max()
        position = int(error.argmax())
        assert error[position] <= tolerance, (
            f"request {request}, output position {position}: error {error[position]:.2e} of max|logit|, "
            f"allowed {tolerance:.0e}"
        )


def assert_greedy_agrees(outputs: list[Tokens], theirs: list[torch.Tensor], tolerance: float) -> int:
    """Our tokens are transformers' argmax wherever its top-2 margin exceeds twice the tolerance. Returns how many
    positions were decided."""
    decided = 0
    for request, (tokens, logits) in enumerate(zip(outputs, theirs, strict=True)):
        best, argmax = logits.topk(2, dim=-1)
        clear = (best[:, 0] - best[:, 1]) > 2 * tolerance * logits.abs().max()
        wrong = clear & (argmax[:, 0] != torch.tensor(tokens))
        assert not wrong.any(), (
            f"request {request}: greedy token differs at output position {int(wrong.int().argmax())}"
        )
        decided += int(clear.sum())
    return decided
