"""The arrays of one forward pass: for the CPU as they are, for a GPU in one buffer that is uploaded at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

import batchllm_ext as ext

NO_SLOT = -1  # of a row that fills a graph: its K and V are not written
ALIGNMENT_INTS = 4  # every array of a buffer begins at a multiple of 16 bytes


@dataclass
class Step:
    """What a forward pass over T rows reads, of which R have logits that somebody reads."""

    token_ids: Tensor  # int32 [T]
    positions: Tensor  # int32 [T]
    slots: Tensor  # int64 [T]
    plan: Any  # what the device's attention takes, of all rows
    logit_rows: Tensor | None = None  # int32 [R]; None where all rows have
    logit_plan: Any = None  # of these rows


def cpu_step(batch: ext.TokenBatch, plan: ext.AttentionPlan, logit_plan: ext.AttentionPlan | None) -> Step:
    """`logit_plan` is that of `batch.logit_batch()`; None where all rows have logits that somebody reads."""
    return Step(
        token_ids=torch.tensor(batch.token_ids),
        positions=torch.tensor(batch.positions),
        slots=torch.tensor(batch.slots),
        plan=plan,
        logit_rows=None if logit_plan is None else torch.tensor(batch.output_rows),
        logit_plan=logit_plan,
    )


class StepLayout:
    """Where the arrays of a step stand in a buffer of int32. Rows that a step does not have write no K and V."""

    def __init__(self, plan: ext.PlanLayout, logit_plan: ext.PlanLayout | None = None) -> None:
        """Room for the rows of `plan`; for logit rows exactly those of `logit_plan`."""
        self.plan, self.logit_plan = plan, logit_plan
        num_rows = plan.sizes["num_rows"]
        sizes = {"slots": 2 * num_rows, "token_ids": num_rows, "positions": num_rows, "plan": plan.num_ints}
        if logit_plan is not None:
            sizes |= {"logit_rows": logit_plan.sizes["num_rows"], "logit_plan": logit_plan.num_ints}
        self._parts: dict[str, slice] = {}
        end = 0
        for name, size in sizes.items():
            self._parts[name] = slice(end, end + size)
            end += -(-size // ALIGNMENT_INTS) * ALIGNMENT_INTS
        self.num_ints = end

    @property
    def num_workspace_floats(self) -> int:
        """Of the memory that both plans take in turns."""
        layouts = [layout for layout in (self.plan, self.logit_plan) if layout is not None]
        return max(layout.num_workspace_floats for layout in layouts)

    def write(
        self,
        buffer: np.ndarray,
        batch: ext.TokenBatch,
        plan: ext.AttentionPlan,
        logit_plan: ext.AttentionPlan | None = None,
    ) -> None:
        """Into int32 [num_ints] of the host."""
        num_rows = batch.num_tokens
        slots = buffer[self._parts["slots"]].view(np.int64)
        slots[:num_rows], slots[num_rows:] = batch.slots, NO_SLOT
        for name, values in (("token_ids", batch.token_ids), ("positions", batch.positions)):
            part = buffer[self._parts[name]]
            part[:num_rows], part[num_rows:] = values, 0
        self.plan.pack(plan, buffer[self._parts["plan"]])
        if self.logit_plan is not None and logit_plan is not None:
            buffer[self._parts["logit_rows"]] = batch.output_rows
            self.logit_plan.pack(logit_plan, buffer[self._parts["logit_plan"]])

    def step(self, buffer: Tensor, new_plan: Callable[[ext.PlanLayout, Tensor], Any]) -> Step:
        """Views of int32 [num_ints] of the device; `new_plan` makes of a part what the device's attention takes."""
        parts = {name: buffer[part] for name, part in self._parts.items()}
        return Step(
            token_ids=parts["token_ids"],
            positions=parts["positions"],
            slots=parts["slots"].view(torch.int64),
            plan=new_plan(self.plan, parts["plan"]),
            logit_rows=parts.get("logit_rows"),
            logit_plan=None if self.logit_plan is None else new_plan(self.logit_plan, parts["logit_plan"]),
        )


class Event(Protocol):
    """Of torch.cuda.Event what an upload needs."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...


class UploadRing:
    """Two pinned buffers that take turns: the host writes one while the copy out of the other may still run."""

    def __init__(self, new_buffer: Callable[[int], Tensor], new_event: Callable[[], Event]) -> None:
        """`new_buffer` makes a pinned int32 tensor of so many elements."""
        self._new_buffer = new_buffer
        self._buffers = [new_buffer(0), new_buffer(0)]
        self._copied = [new_event(), new_event()]
        self._next = 0

    def upload(self, write: Callable[[np.ndarray], None], to: Tensor) -> None:
        """Lets `write` fill a buffer of the size of `to`, int32 of the device, and starts the copy."""
        turn, self._next = self._next, 1 - self._next
        self._copied[turn].synchronize()  # at once, where nothing was recorded yet
        if len(self._buffers[turn]) < len(to):
            self._buffers[turn] = self._new_buffer(2 * len(to))
        host = self._buffers[turn][: len(to)]
        write(host.numpy())
        to.copy_(host, non_blocking=True)
        self._copied[turn].record()
