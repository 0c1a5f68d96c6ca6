"""Microseconds that the host takes for a step of the engine, with a model whose forward pass and logits cost nothing.

    python -m benchmarks.host_time --json

Planner, attention plans, uploads, request table and the sampler's bookkeeping are the real ones, on a GPU made of the
CPU (tests/engine/fake_gpu.py). What is measured is the CPU time of one thread: other processes do not count, but for
the caches that they take and the core that they share.
"""

from __future__ import annotations

import argparse
import json
import pkgutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import batchllm_ext as ext
from batchllm import SamplingParams
from batchllm.device.ops import Draw, DrawParams
from batchllm.engine.engine import Engine
from batchllm.engine.engine_requests import EngineRequest
from batchllm.engine.runner import GpuRunner
from batchllm.models.forward_pass import ForwardPass
from batchllm.models.layer_spec import AttentionSpec
from batchllm.sampling.stop_tokens import MinTokens, StopTokens
from benchmarks.machine import Meter, describe
from tests.engine.fake_gpu import FakeGpu, FakeGpuOps

VOCAB_SIZE = 8
EOS = VOCAB_SIZE - 1  # never drawn
MULTIPROCESSORS = 132
PAGE_SIZE, MAX_BATCH_TOKENS = 16, 2048
# The phases of a step by class and method; those of the runner are named below. The rest of "total" is what stands
# between them. Nothing is forgotten in a step in which nothing ends.
PHASE_OF = {
    "batchllm_ext.BatchPlanner": {
        "next_batch": "schedule",
        "commit": "commit",
        "advance": "commit",
        "forget": "forget",
    },
    "batchllm.engine.engine.LogitsReader": {"sample": "sample"},
}
PHASE_OF_ENGINE = {"_plan_attention": "plan attention", "_end": "end"}
PHASES = ("schedule", "plan attention", "upload", "sample", "draw", "end", "commit", "forget")


@dataclass(frozen=True)
class Job:
    """Groups of readers of one prefix each; every request has `own` tokens besides and answers with up to `output`."""

    num_groups: int
    num_readers: int
    prefix: int
    own: int
    output: int
    kv_tokens: int
    rows: int  # of the steps that are measured, all of them

    def requests(self) -> list[EngineRequest]:
        rng = np.random.default_rng(0)
        requests = []
        for _ in range(self.num_groups):
            prefix = rng.integers(10, 32_000, self.prefix, np.int32)
            for reader in range(self.num_readers):
                prompt = np.concatenate([prefix, rng.integers(10, 32_000, self.own, np.int32)])
                output = self.output - (7 * reader) % (self.output // 2)
                requests.append(EngineRequest(prompt, SamplingParams(temperature=0, max_tokens=output), [0], output))
        return requests


JOBS = {
    # Every row decodes.
    "decode": Job(num_groups=8, num_readers=32, prefix=1024, own=64, output=200, kv_tokens=1 << 17, rows=256),
    # Decodes of some 500 requests, and prefill for those that come in the place of others.
    "mixed": Job(num_groups=120, num_readers=16, prefix=512, own=64, output=32, kv_tokens=1 << 17, rows=2048),
}


class NoModel(ForwardPass):
    """Heads of an 8B model; hidden states and logits are there already."""

    def __init__(self) -> None:
        self.attention_kinds, self.kind_of_layer = (AttentionSpec(32, 8, 128, 128**-0.5),), (0,)
        self.dtype, self.device = torch.bfloat16, torch.device("cpu")
        self._hidden = torch.zeros(MAX_BATCH_TOKENS, 1)
        self._logits = torch.zeros(MAX_BATCH_TOKENS, VOCAB_SIZE)

    def forward(self, step: Any, kv_cache: Any, ops: Any) -> Tensor:
        rows = step.token_ids if step.logit_rows is None else step.logit_rows
        return self._hidden[: len(rows)]

    def logits(self, hidden: Tensor) -> Tensor:
        return self._logits[: len(hidden)]


class NoGpu(FakeGpu):
    """Its graphs do nothing when they are replayed, and what is copied to the host is there."""

    def capture(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        return (lambda: None), run()

    def download(self, values: Tensor, pinned: Tensor) -> None:
        pinned.copy_(values)


class NoKernels(FakeGpuOps):
    """What is drawn is there already, too: zeros."""

    def sample(
        self,
        logits: Tensor,
        params: DrawParams,
        ruled: tuple[Tensor, Tensor] | None = None,
        allowed: tuple[Tensor, Tensor] | None = None,
        *,
        out: Draw,
    ) -> None:
        pass


class PhaseTimes:
    """CPU time by phase, added up until it is taken."""

    def __init__(self) -> None:
        self._ns: dict[str, int] = defaultdict(int)

    def timed(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **options: Any) -> Any:
            begin = time.thread_time_ns()
            try:
                return call(*args, **options)
            finally:
                self._ns[phase] += time.thread_time_ns() - begin

        return measured

    def take(self) -> dict[str, float]:
        """Microseconds."""
        us = {phase: ns / 1e3 for phase, ns in self._ns.items()}
        self._ns.clear()
        return us


def timed_class(times: PhaseTimes, name: str) -> type:
    """The class of that name with its methods in PHASE_OF timed."""
    cls: type = pkgutil.resolve_name(name)
    calls = {method: times.timed(phase, getattr(cls, method)) for method, phase in PHASE_OF[name].items()}
    return type(f"Timed{cls.__name__}", (cls,), calls)


def step_times(job: Job, *, by_phase: bool) -> list[dict[str, float]]:
    """Of each step of `job.rows` rows, microseconds in "total"; and by phase, which takes some of its own."""
    times, steps = PhaseTimes(), []
    stop_tokens = StopTokens((EOS,))
    model = NoModel()
    runner = GpuRunner(model, NoGpu(num_multiprocessors=MULTIPROCESSORS), NoKernels())
    engine = Engine(
        model,
        runner,
        [MinTokens(stop_tokens), stop_tokens],
        levels=None,
        page_size=PAGE_SIZE,
        kv_cache_tokens=job.kv_tokens,
        max_batch_tokens=MAX_BATCH_TOKENS,
    )
    num_rows = 0
    upload = times.timed("upload", runner.forward) if by_phase else runner.forward

    def forward(batch: ext.TokenBatch, *others: Any) -> Tensor:
        nonlocal num_rows
        num_rows = batch.num_tokens
        return upload(batch, *others)

    runner.forward = forward  # type: ignore[method-assign]
    if by_phase:
        runner.download = times.timed("draw", runner.download)  # type: ignore[method-assign]
        for name, phase in PHASE_OF_ENGINE.items():
            setattr(engine, name, times.timed(phase, getattr(engine, name)))
    with ExitStack() as patches:
        for name in PHASE_OF if by_phase else ():
            patches.enter_context(patch(name, timed_class(times, name)))
        engine.add(job.requests())
        while True:
            times.take()
            begin_ns = time.thread_time_ns()
            if engine.step() is None:
                return steps
            total_us = (time.thread_time_ns() - begin_ns) / 1e3
            if num_rows == job.rows:
                steps.append(times.take() | {"total": total_us})


def measured(name: str) -> dict[str, Any]:
    """A line of figures for the job of that name."""
    with Meter() as meter:
        phases = step_times(JOBS[name], by_phase=True)
        steps = step_times(JOBS[name], by_phase=False)
    by_phase = {phase: [step.get(phase, 0.0) for step in phases] for phase in PHASES}
    by_phase["total"] = [step["total"] for step in steps]
    return {
        "job": name,
        "rows": JOBS[name].rows,
        "steps": len(steps),
        "us": {phase: round(statistics.median(us), 1) for phase, us in by_phase.items()},
        # The fastest tenth: what is left of the neighbours on a busy machine.
        "undisturbed_us": {phase: round(statistics.quantiles(us, n=10)[0], 1) for phase, us in by_phase.items()},
        "foreign_share": round(meter.foreign_share, 3),
        "machine": describe(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", choices=JOBS, action="append", help="all of them unless named")
    parser.add_argument("--json", action="store_true", help="one JSON object per job")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.job or JOBS:
        line = measured(name)
        print(json.dumps(line) if options.json else table(line), flush=True)


def table(line: dict[str, Any]) -> str:
    rows = [f"  {phase:<16}{us:>8.1f}{line['undisturbed_us'][phase]:>14.1f}" for phase, us in line["us"].items()]
    others = f"{line['machine']}; others had {line['foreign_share']:.0%} of it"
    head = f"{line['job']}: {line['steps']} steps of {line['rows']} rows, us on one core ({others})"
    return "\n".join([head, f"  {'phase':<16}{'median':>8}{'fastest 10 %':>14}", *rows])


if __name__ == "__main__":
    main()
