"""The figures of a job's replicas, combined."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from batchllm.estimate.tokenized_job import TokenizedJob
from batchllm.jobs.answering import OnProgress
from batchllm.outputs import JobProgress

LARGEST = ("peak_kv_tokens", "num_threads")  # not sums but maxima


class ReplicaFigures:
    """stats: like LLM.stats, summed over all parcels that came back, or the maximum for LARGEST. Seconds are sums over
    replicas, except "total", which is the driver's, and "load", the longest. Empty before the first parcel."""

    def __init__(self, job: TokenizedJob, on_progress: OnProgress | None) -> None:
        self._job, self._on_progress = job, on_progress
        self._start_s = time.perf_counter()
        self._counts: dict[str, Any] = Counter()
        self._seconds: Counter[str] = Counter()
        self._largest = dict.fromkeys(LARGEST, 0)
        self._load_s = 0.0
        self._products: dict[str, str] = {}

    def add(self, stats: dict[str, Any]) -> None:
        """Adds LLM.stats of a parcel; empty if nothing of it ran."""
        if not stats:
            return
        self._counts.update({name: value for name, value in stats.items() if isinstance(value, (int, float))})
        self._seconds.update(stats["seconds"])
        self._largest = {name: max(value, stats[name]) for name, value in self._largest.items()}
        self._load_s = max(self._load_s, stats["seconds"]["load"])
        self._products |= stats["products"]
        if self._on_progress:
            self._on_progress(self._progress())

    @property
    def stats(self) -> dict[str, Any]:
        if not self._counts:
            return {}
        seconds = {**self._seconds, "load": self._load_s, "total": time.perf_counter() - self._start_s}
        return {**self._counts, **self._largest, "products": self._products, "seconds": seconds}

    def _progress(self) -> JobProgress:
        counts, job = self._counts, self._job
        return JobProgress(
            num_requests=job.num_requests,
            finished_requests=counts["num_requests"],
            scheduled_prompt_tokens=counts["prompt_tokens"],
            saved_prompt_tokens=counts["prompt_tokens"] - counts["computed_prompt_tokens"],
            output_tokens=counts["output_tokens"],
            remaining_output_tokens=max(int(job.max_output_tokens.sum()) - counts["output_tokens"], 0),
            elapsed_s=time.perf_counter() - self._start_s,
            waiting_requests=job.num_requests - counts["num_requests"],
            computed_prompt_tokens=counts["computed_prompt_tokens"],
            remaining_prompt_tokens=max(len(job.tokens) - counts["prompt_tokens"], 0),
            recomputed_tokens=counts["recomputed_tokens"],
            peak_kv_tokens=self._largest["peak_kv_tokens"],
            steps=counts["steps"],
            preemptions=counts["preemptions"],
            seconds=dict(self._seconds),
        )
