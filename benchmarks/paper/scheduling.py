"""What order, batches bounded by memory alone, and knowledge of output lengths do to the steps of a job."""

from __future__ import annotations

import numpy as np

from batchllm.estimate.roofline import DEVICES, step_seconds
from batchllm.estimate.simulate import Policy, SimulatedJob, Simulation, simulate
from benchmarks.conversation_trace import Trace
from benchmarks.paper import workloads
from benchmarks.paper.hardware import A100_GIB, LLAMA_8B, pool_tokens
from benchmarks.paper.sharing import Row

BUDGET = 2048  # tokens of a step
REQUEST_CAP = 256  # vLLM's default
POOLS = {"log-normal": (5.0, 10.0, 25.0), "trace": (0.5, 1.0, 5.0, 10.0, 25.0)}  # percent of the working set

SCHEDULES = {
    "LRU, 256 requests": (Policy.LRU, {"max_num_seqs": REQUEST_CAP}),
    "LRU sorted, 256 requests": (Policy.LRU_SORTED, {"max_num_seqs": REQUEST_CAP}),
    "LRU sorted, 2,048 requests": (Policy.LRU_SORTED, {"max_num_seqs": BUDGET}),
    "ours, 256 requests": (Policy.BATCHLLM, {"max_num_seqs": REQUEST_CAP}),
    "ours, by arrival": (Policy.BATCHLLM, {"order": "arrival"}),
    "ours, blended": (Policy.BATCHLLM_BLEND, {}),
    "ours": (Policy.BATCHLLM, {}),
}


def jobs() -> dict[str, SimulatedJob]:
    lengths = workloads.log_normal_lengths(6400, median=150, sigma=1, bound=2048)
    return {
        "uniform": workloads.two_level(requests=6400, degree=16, prefix=2000, own=200, output=100),
        "log-normal outputs": workloads.two_level(requests=6400, degree=16, prefix=2000, own=200, output=lengths),
        "two kinds, shuffled": workloads.two_kinds_of_groups(is_shuffled=True),
        "two kinds, long texts first": workloads.two_kinds_of_groups(is_shuffled=False),
    }


def schedules() -> dict[tuple[str, str], Simulation]:
    """(job, schedule) -> its steps, on an A100's pool"""
    return {
        (name, schedule): simulate(job, policy, kv_tokens=pool_tokens(A100_GIB), max_batch_tokens=BUDGET, **options)
        for name, job in jobs().items()
        for schedule, (policy, options) in SCHEDULES.items()
    }


def batch_tokens(simulation: Simulation) -> np.ndarray:
    """int32 [num_steps]"""
    return simulation.num_decode_tokens + simulation.num_prefill_tokens


def valleys(simulations: dict[tuple[str, str], Simulation]) -> list[Row]:
    """Steps below half the budget, and what the roofline model makes of them."""
    rows = []
    for (job, schedule), simulation in simulations.items():
        tokens = batch_tokens(simulation)
        seconds = step_seconds(simulation, LLAMA_8B, DEVICES["a100"])
        is_valley = tokens < BUDGET / 2
        rows.append(
            {
                "job": job,
                "schedule": schedule,
                "steps": simulation.num_steps,
                "tokens a step": round(tokens.mean()),
                "running": round(simulation.num_running.mean()),
                "steps in valleys %": 100 * is_valley.mean(),
                "model: s": round(seconds.sum()),
                "model: time in valleys %": 100 * seconds[is_valley].sum() / seconds.sum(),
            }
        )
    return rows


def unknown_lengths(trace: Trace) -> list[Row]:
    """Heavy-tailed outputs when their lengths are known, learned while the job runs, or taken to be the bound."""
    outputs = workloads.log_normal_lengths(6400, median=150, sigma=1, bound=2048)
    log_normal = workloads.two_level(requests=6400, degree=16, prefix=2000, own=200, output=outputs, bound=2048)
    rows = []
    for name, job in {"log-normal": log_normal, "trace": workloads.of_trace(trace)}.items():
        working_set = workloads.working_set_tokens(job)
        largest_request = int((np.diff(job.indptr) + job.max_output_tokens).max())
        for percent in POOLS[name]:
            kv_tokens = int(working_set * percent / 100)
            if kv_tokens < largest_request:
                continue
            for lengths in ("known", "learned", "bound"):
                simulation = simulate(
                    job, Policy.BATCHLLM, kv_tokens=kv_tokens, max_batch_tokens=BUDGET, lengths=lengths
                )
                rows.append(
                    {
                        "job": name,
                        "pool %": percent,
                        "KV tokens": kv_tokens,
                        "lengths": lengths,
                        "steps": simulation.num_steps,
                        "running": round(simulation.num_running.mean()),
                        "tokens a step": round(batch_tokens(simulation).mean()),
                        "preemptions": simulation.preemptions,
                        "computed again": simulation.preempted_tokens + simulation.recomputed_output_tokens,
                        "peak % of pool": 100 * simulation.peak_kv_tokens / kv_tokens,
                    }
                )
    return rows
