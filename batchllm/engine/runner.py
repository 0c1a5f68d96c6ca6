"""How a device runs a step: the CPU as it comes; a GPU by one upload, and where all rows sample by a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

import batchllm_ext as ext
from batchllm.device.kv_cache import PagedKVCache
from batchllm.device.ops import CpuOps, GpuOps
from batchllm.device.step import Event, Step, StepLayout, UploadRing, cpu_step
from batchllm.models.decoder import Model


class CpuRunner:
    def __init__(self, model: Model, num_threads: int) -> None:
        self.model = model
        self.ops = CpuOps(num_threads)
        self.plan_options: dict[str, Any] = {"num_threads": num_threads}

    def forward(
        self,
        batch: ext.TokenBatch,
        plan: ext.AttentionPlan,
        logit_plan: ext.AttentionPlan | None,
        kv_cache: PagedKVCache,
    ) -> Tensor:
        """Model.forward of a batch. `logit_plan` is that of `batch.logit_batch()`; None where all rows sample."""
        return self.model.forward(cpu_step(batch, plan, logit_plan), kv_cache, self.ops)


class Gpu:
    """All of CUDA that a runner needs."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.num_multiprocessors = torch.cuda.get_device_properties(self.device).multi_processor_count
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


class GpuRunner:
    """Steps whose rows all sample are replayed from the graph for their bucket of row counts, which is captured anew
    where a plan outgrows it. Other steps run eagerly."""

    def __init__(self, model: Model, gpu: Gpu, ops: GpuOps) -> None:
        self.model, self.ops = model, ops
        self.plan_options: dict[str, Any] = {"num_threads": gpu.num_multiprocessors, "device": "cuda"}
        self.gpu = gpu
        self._ring = UploadRing(gpu.pinned_ints, gpu.event)
        # By row count. A graph has the addresses of the pool's pages, so it goes with the pool.
        self.graphs: WeakKeyDictionary[PagedKVCache, dict[int, Graph]] = WeakKeyDictionary()

    def forward(
        self,
        batch: ext.TokenBatch,
        plan: ext.AttentionPlan,
        logit_plan: ext.AttentionPlan | None,
        kv_cache: PagedKVCache,
    ) -> Tensor:
        """As CpuRunner.forward, but it returns before the GPU is done. A later step overwrites what it returns."""
        if logit_plan is not None:
            num_pages = kv_cache.num_pages
            layout = StepLayout(ext.PlanLayout(plan, num_pages), ext.PlanLayout(logit_plan, num_pages))
            buffer, step = self._new_step(layout)
            self._ring.upload(partial(layout.write, batch=batch, plan=plan, logit_plan=logit_plan), buffer)
            return self.model.forward(step, kv_cache, self.ops)
        graphs = self.graphs.setdefault(kv_cache, {})
        num_rows = bucket(batch.num_tokens)
        graph = graphs.get(num_rows)
        if graph is None or not graph.layout.plan.has_room_for(plan):
            graph = graphs[num_rows] = self._capture(batch, plan, kv_cache, graph)
        self._ring.upload(partial(graph.layout.write, batch=batch, plan=plan), graph.buffer)
        graph.replay()
        return graph.hidden[: batch.num_tokens]

    def _capture(
        self, batch: ext.TokenBatch, plan: ext.AttentionPlan, kv_cache: PagedKVCache, outgrown: Graph | None
    ) -> Graph:
        """With room for plans somewhat larger than this one, and no less than the graph that it takes the place of."""
        sizes = {name: bucket(size) for name, size in plan.sizes.items()}
        if outgrown is not None:
            sizes = {name: max(size, outgrown.layout.plan.sizes[name]) for name, size in sizes.items()}
        layout = StepLayout(ext.PlanLayout(plan, kv_cache.num_pages, **sizes))
        buffer, step = self._new_step(layout)
        self._ring.upload(partial(layout.write, batch=batch, plan=plan), buffer)  # it runs once before it is captured
        replay, hidden = self.gpu.capture(lambda: self.model.forward(step, kv_cache, self.ops))
        return Graph(layout, buffer, step, replay, hidden)

    def _new_step(self, layout: StepLayout) -> tuple[Tensor, Step]:
        """A buffer, and the step that reads it."""
        buffer = torch.empty(layout.num_ints, dtype=torch.int32, device=self.gpu.device)
        workspace = torch.empty(layout.num_workspace_floats, device=self.gpu.device)
        return buffer, layout.step(buffer, partial(self.gpu.plan, workspace))


Runner = CpuRunner | GpuRunner


def bucket(size: int) -> int:
    """The least of 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is no less than `size`."""
    if size <= 2:
        return size
    power = 1 << (size - 1).bit_length()
    return power * 3 // 4 if size <= power * 3 // 4 else power
