"""A GPU simulated by the CPU, for all of the driver except its kernels: a plan is executed from the buffer it was
uploaded to, and a graph runs again what was captured."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import batchllm_ext as ext
from batchllm import LLM
from batchllm.device.ops import CpuOps, GpuOps
from batchllm.engine.runner import GpuRunner
from tests.packed_plan import packed_arrays

WRITE_THROUGH = -1
State = tuple[Tensor, Tensor]  # out [head_dim], lse


@dataclass
class FakeDevicePlan:
    layout: ext.PlanLayout
    buffer: Tensor

    def arrays(self) -> list[np.ndarray]:
        """wide and narrow tiles, rows, pieces, page_ids, merge_rows, a struct per row."""
        return list(packed_arrays(self.layout, self.buffer.numpy()).values())


@dataclass
class FakeStream:
    """Copies to the host, which happen when somebody waits for an event behind them, and how long all work takes."""

    copies: deque[Callable[[], object]] = field(default_factory=deque)
    num_copied: int = 0
    queued_ms: float = 0.0
    done_ms: float = 0.0

    @property
    def end(self) -> tuple[int, float]:
        return self.num_copied + len(self.copies), self.queued_ms

    def run_to(self, num_copied: int, done_ms: float) -> None:
        while self.num_copied < num_copied:
            self.copies.popleft()()
            self.num_copied += 1
        self.done_ms = max(self.done_ms, done_ms)


class FakeEvent:
    def __init__(self, stream: FakeStream | None = None) -> None:
        self._stream = stream or FakeStream()
        self._place = self._stream.end
        self.recorded = 0
        self.waited = 0

    def record(self) -> None:
        self.recorded += 1
        self._place = self._stream.end

    def synchronize(self) -> None:
        self.waited += 1
        self._stream.run_to(*self._place)

    def query(self) -> bool:
        return self._place <= (self._stream.num_copied, self._stream.done_ms)

    def elapsed_time(self, end_event: FakeEvent) -> float:
        assert self.query()
        assert end_event.query()
        return end_event._place[1] - self._place[1]


@dataclass
class FakeGpu:
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    num_multiprocessors: int = 5
    plan_device: str = "h100"
    num_captures: int = 0
    num_replays: int = 0
    stream: FakeStream = field(default_factory=FakeStream)

    def pinned_ints(self, size: int) -> Tensor:
        return torch.full((size,), 0x7F7F7F7F, dtype=torch.int32)

    def event(self, *, timed: bool = False) -> FakeEvent:
        return FakeEvent(self.stream)

    def download(self, values: Tensor, pinned: Tensor) -> None:
        self.stream.copies.append(partial(pinned.copy_, values.clone()))

    def plan(self, workspace: Tensor, layout: ext.PlanLayout, buffer: Tensor) -> FakeDevicePlan:
        assert len(workspace) >= layout.num_workspace_floats
        assert len(buffer) == layout.num_ints
        assert buffer.data_ptr() % 16 == 0
        return FakeDevicePlan(layout, buffer)

    def capture(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.num_captures += 1
        result = run()

        def replay() -> None:
            self.num_replays += 1
            result.copy_(run())

        return replay, result


def on_fake_gpu(directory: Path, **options: Any) -> tuple[LLM, FakeGpu]:
    """LLM(directory, dtype="float32", **options), as it would run on a GPU."""
    llm, gpu = LLM(directory, dtype="float32", **options), FakeGpu()
    llm.engine.runner = GpuRunner(llm.engine.model, gpu, FakeGpuOps())
    return llm, gpu


class FakeGpuOps(GpuOps):
    """The calls of a GPU on the CPU's tensors, with the differences between its kernels and the CPU's."""

    def norm_rotate_append(self, qkv: Tensor, norms, angles, slots: Tensor, k_pages, v_pages, *, eps: float) -> None:
        """All rows, but K and V of those alone that have a slot."""
        if angles is None:
            super().norm_rotate_append(qkv, norms, angles, slots, k_pages, v_pages, eps=eps)
            return
        kept = slots >= 0
        rows = qkv[kept]
        CpuOps().norm_rotate_append(
            rows, norms, [angle[kept] for angle in angles], slots[kept], k_pages, v_pages, eps=eps
        )
        qkv[kept] = rows

    def append_kv(self, k: Tensor, v: Tensor, slots: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
        kept = slots >= 0
        super().append_kv(k[kept], v[kept], slots[kept], k_pages, v_pages)

    def attention(
        self,
        plan: FakeDevicePlan,
        q: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        *,
        out: Tensor,
        softmax_scale: float | None = None,
        soft_cap: float = 0.0,
        sinks: Tensor | None = None,
    ) -> None:
        assert len(q) == len(out) == plan.layout.sizes["num_rows"]
        assert len(k_pages) == len(v_pages)
        out.fill_(torch.nan)  # rows that the plan does not have may hold anything
        scale = q.shape[2] ** -0.5 if softmax_scale is None else softmax_scale
        execute(plan.arrays(), q, k_pages, v_pages, out, Scores(scale, soft_cap, sinks))

    def _stream(self) -> int:
        return 0


@dataclass(frozen=True)
class Scores:
    """What attention makes of products of q and k."""

    softmax_scale: float
    soft_cap: float
    sinks: Tensor | None  # [num_qo_heads]

    def of(self, products: Tensor) -> Tensor:
        scores = products * self.softmax_scale
        return self.soft_cap * torch.tanh(scores / self.soft_cap) if self.soft_cap else scores

    def sink(self, head: int) -> list[State]:
        return [] if self.sinks is None else [(torch.zeros(()), self.sinks[head].double())]


def execute(
    arrays: list[np.ndarray], q: Tensor, k_pages: Tensor, v_pages: Tensor, out: Tensor, scores_of: Scores
) -> None:
    """The kernels of csrc/attention/cuda, one row of one head at a time."""
    wide_tiles, narrow_tiles, rows, pieces, page_ids, merge_rows = arrays
    page_size, num_kv_heads = k_pages.shape[1:3]
    group_size = q.shape[1] // num_kv_heads
    states: dict[tuple[int, int], State] = {}
    for row_begin, packed_begin, packed_end, piece_begin, kv_begin, kv_end in [
        *wide_tiles.tolist(),
        *narrow_tiles.tolist(),
    ]:
        for packed in range(packed_begin, packed_end):
            token, begin, end, slot = rows[row_begin + packed // group_size].tolist()
            begin, end = max(begin, kv_begin), min(end, kv_end)
            page, offset = slots_of(pieces, page_ids, piece_begin, begin, end, page_size)
            for kv_head in range(num_kv_heads):
                head = kv_head * group_size + packed % group_size
                k, v = k_pages[page, offset, kv_head].double(), v_pages[page, offset, kv_head].double()
                scores = scores_of.of(k @ q[token, head].double())
                state = torch.softmax(scores, 0) @ v, scores.logsumexp(0)
                if slot == WRITE_THROUGH:
                    out[token, head] = merged([state, *scores_of.sink(head)])
                else:
                    states[slot, head] = state
    for token, slot_begin, slot_end in merge_rows.tolist():
        if token < 0:
            continue
        for head in range(q.shape[1]):
            parts = [states[slot, head] for slot in range(slot_begin, slot_end)]
            out[token, head] = merged([*parts, *scores_of.sink(head)]) if parts else 0


def merged(states: list[State]) -> Tensor:
    weights = torch.softmax(torch.stack([lse for _, lse in states]), 0)
    return sum((weight * out for weight, (out, _) in zip(weights, states, strict=True)), torch.zeros(()))


def slots_of(pieces, page_ids, piece: int, begin: int, end: int, page_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pages and offsets of the positions [begin, end)."""
    pages, offsets = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    while begin < end:
        first_page, segment_begin, position_begin, position_end = pieces[piece].tolist()
        positions = np.arange(max(begin, position_begin), min(end, position_end))
        pages.append(page_ids[first_page + (positions - segment_begin) // page_size, 0])
        offsets.append((positions - segment_begin) % page_size)
        begin = max(begin, position_end)
        piece += 1
    return np.concatenate(pages), np.concatenate(offsets)
