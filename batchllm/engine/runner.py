"""How a device runs a step: a CPU at once; a GPU behind the host, by one upload and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

import batchllm_ext as ext
from batchllm.device.kv_cache import PagedKVCache
from batchllm.device.ops import DRAW_INTS, CpuOps, Draw, GpuOps, Ops
from batchllm.device.step import Step, StepLayout, cpu_step, with_tokens
from batchllm.device.transfer import DownloadRing, Event, UploadRing
from batchllm.engine.graphs import Graph, Graphs
from batchllm.models.forward_pass import ForwardPass

FIRST_DRAWN = DRAW_INTS * 4096  # more rows than most pools have running requests

# Waits until tokens int32 [R] and log-probabilities float32 [R] are on the host, and gives them.
Drawn = Callable[[], tuple[np.ndarray, np.ndarray]]


class Runner(Protocol):
    """Runs the steps of one model on its device, in their order."""

    ops: Ops  # of the device
    plan_options: dict[str, Any]  # of ext.plan_attention: the device to plan for
    new_event: Callable[[], Event] | None
    """An event of the device for timing; None if the device is the host. Then calls return when they are done, and a
    step is never planned before the tokens of the one before are known."""
    num_captures: int  # CUDA graphs so far
    logit_rows_at_once: int
    """Rows of logits that are alive at once: a vocabulary of 128,000 in bfloat16 is 0.25 MB per row. Fewer rows would
    read the output embedding, the largest matrix, more often."""

    def forward(
        self,
        batch: ext.TokenBatch,
        plans: tuple[ext.AttentionPlan, ...],
        logit_plans: tuple[ext.AttentionPlan, ...],
        kv_cache: PagedKVCache,
    ) -> Tensor:
        """The model's forward pass over a batch: hidden states [R, hidden_size] of batch.output_rows, on the device.

        plans: of the batch, one for each of the model's attention_kinds. logit_plans: as many for
        `batch.output_rows`; none if the logits of all rows are needed. It may return before the device is done, and a
        later step may overwrite what it returns. The batch's untold tokens are those of the last draw.
        """

    def place_of_draw(self, num_rows: int) -> Draw:
        """Where a step's tokens are to be drawn, by logit row. They stay there for the next `forward`."""

    def download(self, draw: Draw) -> Drawn:
        """Returns a function that gives a step's draw to the host; call it before the next but one `download`."""


class CpuRunner(Runner):
    new_event = None
    num_captures = 0
    logit_rows_at_once = 256

    def __init__(self, model: ForwardPass, num_threads: int) -> None:
        self.model = model
        self.ops = CpuOps(num_threads)
        self.plan_options = {"num_threads": num_threads}
        ext.shorten_time_slices(num_threads)

    def forward(
        self,
        batch: ext.TokenBatch,
        plans: tuple[ext.AttentionPlan, ...],
        logit_plans: tuple[ext.AttentionPlan, ...],
        kv_cache: PagedKVCache,
    ) -> Tensor:
        return self.model.forward(cpu_step(batch, plans, logit_plans), kv_cache, self.ops)

    def place_of_draw(self, num_rows: int) -> Draw:
        return Draw.of(num_rows, self.model.device)

    def download(self, draw: Draw) -> Drawn:
        return lambda: (draw.token_ids.numpy(), draw.logprobs.numpy())


class Gpu:
    """All of CUDA that a runner needs."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        properties = torch.cuda.get_device_properties(self.device)
        self.num_multiprocessors = properties.multi_processor_count
        self.plan_device = ext.nearest_gpu(properties.name, properties.major)  # the model that plans assume
        self._pool = torch.cuda.graph_pool_handle()  # graphs never run at the same time, so they share memory

    def pinned_ints(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int32, pin_memory=True)

    def event(self, *, timed: bool = False) -> Event:
        return torch.cuda.Event(enable_timing=timed)

    def download(self, values: Tensor, pinned: Tensor) -> None:
        """Queues a copy to the host, complete once an event recorded after it has completed."""
        pinned.copy_(values, non_blocking=True)

    def plan(self, workspace: Tensor, layout: ext.PlanLayout, buffer: Tensor) -> ext.DevicePlan:
        return ext.DevicePlan(layout, buffer, workspace)

    def capture(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """A function that replays `run`, and the place of its result after each replay."""
        run()  # one-time setup of libraries must not be captured
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = run()
        return graph.replay, result


class GpuRunner(Runner):
    """Steps of frequent buckets are replayed from CUDA graphs; others run eagerly."""

    logit_rows_at_once = 512

    def __init__(self, model: ForwardPass, gpu: Gpu, ops: GpuOps) -> None:
        self.model, self.ops = model, ops
        self.plan_options = {"num_threads": gpu.num_multiprocessors, "device": gpu.plan_device}
        self.gpu = gpu
        self.new_event = partial(gpu.event, timed=True)
        self.num_captures = 0
        self._uploads = UploadRing(gpu.pinned_ints, gpu.event)
        self._downloads = DownloadRing(gpu.pinned_ints, gpu.event, gpu.download)
        # What is drawn by a step, and read by the next: its tokens come first.
        self._drawn = torch.zeros(FIRST_DRAWN, dtype=torch.int32, device=gpu.device)
        self._draw = Draw.into(self._drawn[:0])  # the last place
        self.graphs: WeakKeyDictionary[PagedKVCache, Graphs] = WeakKeyDictionary()

    def forward(
        self,
        batch: ext.TokenBatch,
        plans: tuple[ext.AttentionPlan, ...],
        logit_plans: tuple[ext.AttentionPlan, ...],
        kv_cache: PagedKVCache,
    ) -> Tensor:
        num_pages = kv_cache.num_pages
        graphs = self.graphs.get(kv_cache)
        if graphs is None:
            graphs = self.graphs[kv_cache] = Graphs(num_pages)
        write = partial(StepLayout.write, batch=batch, plans=plans, logit_plans=logit_plans)
        graph = graphs.find(plans, logit_plans, lambda layout: self._capture(layout, write, kv_cache))
        if graph is None:
            layouts = [tuple(ext.PlanLayout(plan, num_pages) for plan in of) for of in (plans, logit_plans)]
            _, step = self._upload(StepLayout(*layouts), write)
            return self._run(step, kv_cache)
        self._uploads.upload(partial(write, graph.layout), graph.buffer)
        graph.replay()
        return graph.hidden[: logit_plans[0].num_rows if logit_plans else batch.num_tokens]

    def place_of_draw(self, num_rows: int) -> Draw:
        if num_rows != len(self._draw):
            num_ints = DRAW_INTS * num_rows
            if num_ints > self._drawn.numel():
                self._drawn = torch.zeros(2 * num_ints, dtype=torch.int32, device=self.gpu.device)
                self.graphs.clear()  # they have the address of the old buffer
            self._draw = Draw.into(self._drawn[:num_ints])
        return self._draw

    def download(self, draw: Draw) -> Drawn:
        num_rows = len(draw)
        read = self._downloads.download(draw.buffer)

        def drawn() -> tuple[np.ndarray, np.ndarray]:
            values = read()
            return values[:num_rows], values[num_rows : 2 * num_rows].view(np.float32)

        return drawn

    def _capture(self, layout: StepLayout, write: Callable[..., None], kv_cache: PagedKVCache) -> Graph:
        self.num_captures += 1
        buffer, step = self._upload(layout, write)  # it runs once before it is captured
        replay, hidden = self.gpu.capture(lambda: self._run(step, kv_cache))
        return Graph(layout, buffer, step, replay, hidden)

    def _upload(self, layout: StepLayout, write: Callable[..., None]) -> tuple[Tensor, Step]:
        """A new buffer and the step that reads it."""
        buffer = torch.empty(layout.num_ints, dtype=torch.int32, device=self.gpu.device)
        workspace = torch.empty(layout.num_workspace_floats, device=self.gpu.device)
        self._uploads.upload(partial(write, layout), buffer)
        return buffer, layout.step(buffer, partial(self.gpu.plan, workspace))

    def _run(self, step: Step, kv_cache: PagedKVCache) -> Tensor:
        return self.model.forward(with_tokens(step, self._drawn), kv_cache, self.ops)
