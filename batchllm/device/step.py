"""The arrays of one forward pass: for a CPU in place, for a GPU in one buffer that is uploaded at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import batchllm_ext as ext

ALIGNMENT_INTS = 4  # every array of a buffer begins at a multiple of 16 bytes


@dataclass
class Step:
    """The inputs of a forward pass over T rows, R of which need logits. Plans are in the form of the device's
    attention, one per kind of layer."""

    token_ids: Tensor  # int32 [T]
    positions: Tensor  # int32 [T]
    slots: Tensor  # int64 [T]
    plans: tuple[Any, ...]  # of all rows
    logit_rows: Tensor | None = None  # int32 [R]; None if all rows need logits
    logit_plans: tuple[Any, ...] = ()  # of these rows


def cpu_step(
    batch: ext.TokenBatch, plans: tuple[ext.AttentionPlan, ...], logit_plans: tuple[ext.AttentionPlan, ...]
) -> Step:
    """`logit_plans` are those of `batch.output_rows`; none if all rows need logits."""
    return Step(
        token_ids=torch.tensor(batch.token_ids),
        positions=torch.tensor(batch.positions),
        slots=torch.tensor(batch.slots),
        plans=plans,
        logit_rows=torch.tensor(batch.output_rows) if logit_plans else None,
        logit_plans=logit_plans,
    )


class StepLayout:
    """Offsets of a step's arrays in a buffer of int32. Padding rows write no K and V. An untold token is stored as ~i:
    logit row i of the step before samples it (`with_tokens`)."""

    def __init__(self, plans: tuple[ext.PlanLayout, ...], logit_plans: tuple[ext.PlanLayout, ...] = ()) -> None:
        """Room for the rows of `plans`, one per kind of layer, and for the logit rows of `logit_plans`, if any."""
        self.plans, self.logit_plans = plans, logit_plans
        self.num_ints = 0
        num_rows = plans[0].sizes["num_rows"]
        self._slots = self._place(2 * num_rows)
        self._token_ids, self._positions = self._place(num_rows), self._place(num_rows)
        self._plans = [self._place(plan.num_ints) for plan in plans]
        self._logit_rows = self._place(logit_plans[0].sizes["num_rows"]) if logit_plans else slice(0)
        self._logit_plans = [self._place(plan.num_ints) for plan in logit_plans]

    def _place(self, num_ints: int) -> slice:
        begin = self.num_ints
        self.num_ints += -(-num_ints // ALIGNMENT_INTS) * ALIGNMENT_INTS
        return slice(begin, begin + num_ints)

    @property
    def num_workspace_floats(self) -> int:
        """The size of the workspace that all plans use in turn."""
        return max(layout.num_workspace_floats for layout in (*self.plans, *self.logit_plans))

    def has_room_for(
        self, plans: tuple[ext.AttentionPlan, ...], logit_plans: tuple[ext.AttentionPlan, ...] = ()
    ) -> bool:
        pairs = zip((*self.plans, *self.logit_plans), (*plans, *logit_plans), strict=True)
        return all(layout.has_room_for(plan) for layout, plan in pairs)

    def write(
        self,
        buffer: np.ndarray,
        batch: ext.TokenBatch,
        plans: tuple[ext.AttentionPlan, ...],
        logit_plans: tuple[ext.AttentionPlan, ...] = (),
    ) -> None:
        """Into int32 [num_ints] of the host."""
        batch.write_rows(
            slots=buffer[self._slots].view(np.int64),
            token_ids=buffer[self._token_ids],
            positions=buffer[self._positions],
        )
        for layout, part, plan in zip(self.plans, self._plans, plans, strict=True):
            layout.pack(plan, buffer[part])
        if logit_plans:
            rows, logit_rows = batch.output_rows, buffer[self._logit_rows]
            logit_rows[: len(rows)], logit_rows[len(rows) :] = rows, 0
            for layout, part, plan in zip(self.logit_plans, self._logit_plans, logit_plans, strict=True):
                layout.pack(plan, buffer[part])

    def step(self, buffer: Tensor, new_plan: Callable[[ext.PlanLayout, Tensor], Any]) -> Step:
        """Views of int32 [num_ints] on the device; `new_plan` makes a plan for the device's attention from a part."""

        def new_plans(layouts: tuple[ext.PlanLayout, ...], parts: list[slice]) -> tuple[Any, ...]:
            return tuple(new_plan(layout, buffer[part]) for layout, part in zip(layouts, parts, strict=True))

        return Step(
            token_ids=buffer[self._token_ids],
            positions=buffer[self._positions],
            slots=buffer[self._slots].view(torch.int64),
            plans=new_plans(self.plans, self._plans),
            logit_rows=buffer[self._logit_rows] if self.logit_plans else None,
            logit_plans=new_plans(self.logit_plans, self._logit_plans),
        )


def with_tokens(step: Step, sampled: Tensor) -> Step:
    """The same step with token ids from `sampled` in place of ~i. sampled: int32 on the device, the tokens of the step
    before."""
    ids = step.token_ids
    return replace(step, token_ids=torch.where(ids < 0, sampled[(~ids).clamp_(min=0)], ids))
