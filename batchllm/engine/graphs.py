"""CUDA graphs for the steps of one KV pool: which are worth capturing, and how much room each has.

Capturing a step runs it twice and takes as long as many steps. So a graph is made only for a bucket of row counts that
keeps coming, with so much room that no plan of the bucket outgrows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

import batchllm_ext as ext
from batchllm.device.step import Step, StepLayout

CAPTURED_AFTER = 8  # steps of a bucket that run without a graph
# A step of prompt tokens is bound by arithmetic, which padding rows cost, too.
LEAST_FILLED = 0.9
ROOM = 2  # for sizes that depend on how keys are shared and split, over the largest so far

Plans = tuple[ext.AttentionPlan, ...]
Bucket = tuple[int, int]  # rows, and logit rows if not all rows have logits, otherwise 0


@dataclass
class Graph:
    """A captured forward pass, over as many rows as its layout has."""

    layout: StepLayout
    buffer: Tensor  # int32 [layout.num_ints], read by the graph
    step: Step  # kept, because the graph has the addresses of its arrays
    replay: Callable[[], None]
    hidden: Tensor  # [num_rows or num_logit_rows, hidden_size], of the last replay


@dataclass
class Steps:
    """What is known about the steps of a bucket."""

    num_met: int = 0
    sizes: list[dict[str, int]] = field(default_factory=list)  # of each plan, the largest so far
    graph: Graph | None = None

    def meet(self, plans: Plans) -> None:
        self.num_met += 1
        seen = self.sizes or [{}] * len(plans)
        self.sizes = [
            {name: max(size, most.get(name, 0)) for name, size in plan.sizes.items()}
            for plan, most in zip(plans, seen, strict=True)
        ]


class Graphs:
    """Graphs by bucket. A graph has the addresses of the pool's pages, so it lives as long as the pool."""

    def __init__(self, num_pages: int) -> None:
        self._num_pages = num_pages
        self._steps: dict[Bucket, Steps] = {}

    def __len__(self) -> int:
        return sum(steps.graph is not None for steps in self._steps.values())

    def find(self, plans: Plans, logit_plans: Plans, capture: Callable[[StepLayout], Graph]) -> Graph | None:
        """The graph to replay a step with these plans from, which may be captured now; None to run without one."""
        bucket = bucket_of(plans[0].num_rows, logit_plans[0].num_rows if logit_plans else 0)
        if bucket is None:
            return None
        steps = self._steps.get(bucket)
        if steps is None:
            steps = self._steps[bucket] = Steps()
        if steps.graph is not None and steps.graph.layout.has_room_for(plans, logit_plans):
            return steps.graph
        steps.meet((*plans, *logit_plans))
        if steps.num_met <= CAPTURED_AFTER:
            return None
        steps.graph = capture(self._layout(bucket, plans, logit_plans, steps.sizes))
        return steps.graph

    def _layout(self, bucket: Bucket, plans: Plans, logit_plans: Plans, sizes: list[dict[str, int]]) -> StepLayout:
        num_rows, num_logit_rows = bucket
        rows = [num_rows] * len(plans) + [num_logit_rows] * len(logit_plans)
        layouts = [
            ext.PlanLayout(plan, self._num_pages, **room_for(most, of_plan, self._num_pages))
            for plan, most, of_plan in zip((*plans, *logit_plans), sizes, rows, strict=True)
        ]
        return StepLayout(tuple(layouts[: len(plans)]), tuple(layouts[len(plans) :]))


def bucket_of(num_rows: int, num_logit_rows: int) -> Bucket | None:
    """num_logit_rows: 0 if all rows have logits. None if the steps are not to be replayed."""
    rows = row_bucket(num_rows)
    if num_logit_rows == 0:
        return rows, 0
    return (rows, min(logit_row_bucket(num_logit_rows), rows)) if num_rows >= LEAST_FILLED * rows else None


def room_for(most: dict[str, int], num_rows: int, num_pages: int) -> dict[str, int]:
    """Sizes of a PlanLayout for plans over up to `num_rows` rows, of which the largest so far had the sizes `most`."""
    room = {name: ROOM * size for name, size in most.items()}
    every_row = ("num_item_rows", "num_pieces", "num_narrow_tiles", "num_merged_rows")
    room |= {name: max(room[name], num_rows) for name in every_row}
    room["num_partial_rows"] = max(room["num_partial_rows"], 2 * num_rows)  # a shared and an own part of each row
    return room | {"num_rows": num_rows, "num_page_ids": max(num_pages, most["num_page_ids"])}


def row_bucket(size: int) -> int:
    """The least of 8, 16, 32, 64, 96, 128, 192, 256, 384, ... that is no less than `size`. Few rows wait for the
    weights, so padding costs nothing there."""
    power = max(1 << (size - 1).bit_length(), 8)
    return power * 3 // 4 if power > 64 and size <= power * 3 // 4 else power


def logit_row_bucket(size: int) -> int:
    """The least of 8, 32, 128, 512, ... that is no less than `size`: these rows are used only in half of one layer."""
    bucket = 8
    while bucket < size:
        bucket *= 4
    return bucket
