"""How a device runs a step: the CPU as it comes; a GPU by one upload, and where all rows sample by a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

import batchllm_ext as ext
from batchllm.device.kv_cache import PagedKVCache
from batchllm.device.ops import CpuOps, GpuOps, Ops
from batchllm.device.step import Event, Step, StepLayout, UploadRing, cpu_step
from batchllm.models.forward_pass import ForwardPass


class Runner(Protocol):
    """Runs the steps of one model on its device."""

    ops: Ops  # of the device
    plan_options: dict[str, Any]  # of ext.plan_attention: what it is to plan for

    def forward(
        self,
        batch: ext.TokenBatch,
        plans: tuple[ext.AttentionPlan, ...],
        logit_plans: tuple[ext.AttentionPlan, ...],
        kv_cache: PagedKVCache,
    ) -> Tensor:
        """The model's forward pass over a batch: hidden states [R, hidden_size] of batch.output_rows, on the device.

        plans: of the batch, one for each of the model's attention_kinds. logit_plans: as many of
        `batch.logit_batch()`; none where all rows have logits that somebody reads. It may return before the device is
        done, and a later step may overwrite what it returns.
        """


class CpuRunner(Runner):
    def __init__(self, model: ForwardPass, num_threads: int) -> None:
        self.model = model
        self.ops = CpuOps(num_threads)
        self.plan_options = {"num_threads": num_threads}

    def forward(
        self,
        batch: ext.TokenBatch,
        plans: tuple[ext.AttentionPlan, ...],
        logit_plans: tuple[ext.AttentionPlan, ...],
        kv_cache: PagedKVCache,
    ) -> Tensor:
        return self.model.forward(cpu_step(batch, plans, logit_plans), kv_cache, self.ops)


class Gpu:
    """All of CUDA that a runner needs."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        properties = torch.cuda.get_device_properties(self.device)
        self.num_multiprocessors = properties.multi_processor_count
        self.plan_device = ext.nearest_gpu(properties.name, properties.major)  # what plans take it for
        self._pool = torch.cuda.graph_pool_handle()  # graphs never run at the same time, so they share their memory

    def pinned_ints(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int32, pin_memory=True)

    def event(self) -> Event:
        return torch.cuda.Event()

    def plan(self, workspace: Tensor, layout: ext.PlanLayout, buffer: Tensor) -> ext.DevicePlan:
        return ext.DevicePlan(layout, buffer, workspace)

    def capture(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """What replays `run`, and where its result stands after each replay."""
        run()  # what libraries set up once must not fall into the capture
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = run()
        return graph.replay, result


@dataclass
class Graph:
    """A captured forward pass, over as many rows as its layout has."""

    layout: StepLayout
    buffer: Tensor  # int32 [layout.num_ints], which it reads
    step: Step  # kept, because the graph has the addresses of what is in it
    replay: Callable[[], None]
    hidden: Tensor  # [num_rows, hidden_size], of the last replay


class GpuRunner(Runner):
    """Steps whose rows all sample are replayed from the graph for their bucket of row counts, which is captured anew
    where a plan outgrows it. Other steps run eagerly."""

    def __init__(self, model: ForwardPass, gpu: Gpu, ops: GpuOps) -> None:
        self.model, self.ops = model, ops
        self.plan_options = {"num_threads": gpu.num_multiprocessors, "device": gpu.plan_device}
        self.gpu = gpu
        self._ring = UploadRing(gpu.pinned_ints, gpu.event)
        # By row count. A graph has the addresses of the pool's pages, so it goes with the pool.
        self.graphs: WeakKeyDictionary[PagedKVCache, dict[int, Graph]] = WeakKeyDictionary()

    def forward(
        self,
        batch: ext.TokenBatch,
        plans: tuple[ext.AttentionPlan, ...],
        logit_plans: tuple[ext.AttentionPlan, ...],
        kv_cache: PagedKVCache,
    ) -> Tensor:
        if logit_plans:
            layouts = [tuple(ext.PlanLayout(plan, kv_cache.num_pages) for plan in of) for of in (plans, logit_plans)]
            layout = StepLayout(*layouts)
            buffer, step = self._new_step(layout)
            self._ring.upload(partial(layout.write, batch=batch, plans=plans, logit_plans=logit_plans), buffer)
            return self.model.forward(step, kv_cache, self.ops)
        graphs = self.graphs.setdefault(kv_cache, {})
        num_rows = bucket(batch.num_tokens)
        graph = graphs.get(num_rows)
        if graph is None or not graph.layout.has_room_for(plans):
            graph = graphs[num_rows] = self._capture(batch, plans, kv_cache, graph)
        self._ring.upload(partial(graph.layout.write, batch=batch, plans=plans), graph.buffer)
        graph.replay()
        return graph.hidden[: batch.num_tokens]

    def _capture(
        self,
        batch: ext.TokenBatch,
        plans: tuple[ext.AttentionPlan, ...],
        kv_cache: PagedKVCache,
        outgrown: Graph | None,
    ) -> Graph:
        """With room for plans somewhat larger than these, and no less than the graph that it takes the place of."""
        layouts = []
        for kind, plan in enumerate(plans):
            sizes = {name: bucket(size) for name, size in plan.sizes.items()}
            if outgrown is not None:
                sizes = {name: max(size, outgrown.layout.plans[kind].sizes[name]) for name, size in sizes.items()}
            layouts.append(ext.PlanLayout(plan, kv_cache.num_pages, **sizes))
        layout = StepLayout(tuple(layouts))
        buffer, step = self._new_step(layout)
        self._ring.upload(partial(layout.write, batch=batch, plans=plans), buffer)  # it runs once before it is captured
        replay, hidden = self.gpu.capture(lambda: self.model.forward(step, kv_cache, self.ops))
        return Graph(layout, buffer, step, replay, hidden)

    def _new_step(self, layout: StepLayout) -> tuple[Tensor, Step]:
        """A buffer, and the step that reads it."""
        buffer = torch.empty(layout.num_ints, dtype=torch.int32, device=self.gpu.device)
        workspace = torch.empty(layout.num_workspace_floats, device=self.gpu.device)
        return buffer, layout.step(buffer, partial(self.gpu.plan, workspace))


def bucket(size: int) -> int:
    """The least of 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is no less than `size`."""
    if size <= 2:
        return size
    power = 1 << (size - 1).bit_length()
    return power * 3 // 4 if size <= power * 3 // 4 else power
