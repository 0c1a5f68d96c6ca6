"""The loop: plan a batch, run it, sample, commit; until every request is answered."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import torch

import batchllm_ext as ext
from batchllm.device.kv_cache import PagedKVCache
from batchllm.engine.runner import Runner
from batchllm.estimate.simulate import READER_COST_TOKENS
from batchllm.models.decoder import Model
from batchllm.outputs import JobProgress
from batchllm.sampling.sampler import ROWS_AT_ONCE, Sampler
from batchllm.sampling.stopping import StopStringWatcher

SECONDS_BETWEEN_PROGRESS = 0.1


@dataclass
class Job:
    """n requests (a prompt with several completions stands here once for each)."""

    tokens: np.ndarray  # int32 [sum of prompt lengths]
    indptr: np.ndarray  # int64 [n + 1]
    max_output_tokens: np.ndarray  # int32 [n]
    expected_output_tokens: np.ndarray  # int32 [n]; 0 where unknown
    sampler: Sampler
    stop_strings: StopStringWatcher


@dataclass
class Finished:
    """One request that a commit finished."""

    request_id: int
    token_ids: list[int]
    stopped: bool  # by a stop token or a stop string; otherwise by length
    cumulative_logprob: float
    num_cached_tokens: int


@dataclass
class Engine:
    model: Model
    runner: Runner
    levels: int | None
    page_size: int
    kv_cache_tokens: int  # at most; a job gets a pool of what it needs
    max_batch_tokens: int
    kv_cache: PagedKVCache | None = None
    stats: dict[str, Any] = field(default_factory=dict)

    @torch.inference_mode()
    def run(self, job: Job, on_progress: Callable[[JobProgress], None] | None = None) -> Iterator[Finished]:
        """Answers every request of the job, each as it finishes.

        Raises ValueError, before anything runs, for a request that the KV pool can never hold; and in the first step
        whose logits are not finite, after which every answer would be worthless.
        """
        clock = PhaseClock()
        with clock("plan"):
            planner, kv_cache = self._plan(job)
        self.kv_cache = None  # ours while this job runs: another job makes its own
        try:
            yield from self._loop(job, planner, kv_cache, clock, on_progress)
        finally:
            self.kv_cache = kv_cache

    def _loop(
        self,
        job: Job,
        planner: ext.BatchPlanner,
        kv_cache: PagedKVCache,
        clock: PhaseClock,
        on_progress: Callable[[JobProgress], None] | None,
    ) -> Iterator[Finished]:
        num_output_tokens = np.zeros(len(job.max_output_tokens), np.int32)  # [n]
        logprobs = np.zeros(len(job.max_output_tokens), np.float64)  # [n], of the tokens so far, summed
        remaining_tokens = int(job.max_output_tokens.sum())
        next_progress_s = 0.0
        for step in count(1):
            with clock("schedule"):
                batch = planner.next_batch()
                if batch is None:
                    break
                plan = self._plan_attention(batch)
                all_sample = len(batch.logit_rows) == batch.num_tokens
                logit_plan = None if all_sample else self._plan_attention(batch.logit_batch())
            with clock("forward"):
                hidden = self.runner.forward(batch, plan, logit_plan, kv_cache)
            ids = batch.logit_request_ids
            sampled, step_logprobs = self._sample(job, hidden, ids, num_output_tokens[ids], clock)
            if not np.isfinite(step_logprobs).all():  # as they are where one logit of a row is not
                raise ValueError(
                    f"the logits are not finite since step {step} of the job: weights of the model are not, or overflow"
                )
            with clock("sample"):
                num_output_tokens[ids] += 1
                logprobs[ids] += step_logprobs
                stopped = job.sampler.ends(sampled, ids)
                goes_on = ~stopped
                on_ids = ids[goes_on]
                stopped[goes_on] = job.stop_strings.update(on_ids, sampled[goes_on], num_output_tokens[on_ids])
            with clock("schedule"):
                done = planner.commit(sampled, stopped)
            remaining_tokens -= len(ids) + int((job.max_output_tokens[done] - num_output_tokens[done]).sum())
            self.stats = self._stats(planner, clock)
            if on_progress and (len(done) or clock.elapsed_s >= next_progress_s):
                next_progress_s = clock.elapsed_s + SECONDS_BETWEEN_PROGRESS
                on_progress(_progress(planner, remaining_tokens, clock))
            stopped_ids = set(ids[stopped].tolist())
            for request in done.tolist():
                yield Finished(
                    request_id=request,
                    token_ids=planner.output_tokens(request).tolist(),
                    stopped=request in stopped_ids,
                    cumulative_logprob=float(logprobs[request]),
                    num_cached_tokens=planner.num_cached_tokens(request),
                )
        self.stats = self._stats(planner, clock)

    def _plan(self, job: Job) -> tuple[ext.BatchPlanner, PagedKVCache]:
        trie = ext.PrefixTrie(job.tokens, job.indptr, drop_last=1)
        segments = ext.choose_segments(trie, levels=self.levels, reader_cost=READER_COST_TOKENS)
        kv_cache = self._kv_cache_for(job, segments)
        planner = ext.BatchPlanner(
            job.tokens,
            job.indptr,
            segments,
            max_output_tokens=job.max_output_tokens,
            expected_output_tokens=job.expected_output_tokens,
            num_pages=kv_cache.num_pages,
            page_size=self.page_size,
            max_batch_tokens=self.max_batch_tokens,
        )
        if planner.refused:
            raise ValueError(planner.refused[0][1])
        return planner, kv_cache

    def _kv_cache_for(self, job: Job, segments: ext.Segments) -> PagedKVCache:
        """A pool that holds the whole job at its worst, or as much of it as `kv_cache_tokens` allows."""
        needed_pages = max(job_pages(job, segments, self.page_size), 1)
        num_pages = min(needed_pages, self.kv_cache_tokens // self.page_size)
        if self.kv_cache is None or self.kv_cache.num_pages < num_pages:
            self.kv_cache = None  # give the old pool back first
            model = self.model
            self.kv_cache = PagedKVCache.allocate(model.config, num_pages, self.page_size, model.dtype, model.device)
        return self.kv_cache

    def _plan_attention(self, batch: ext.TokenBatch) -> ext.AttentionPlan:
        config = self.model.config
        return ext.plan_attention(
            batch.span_indptr,
            batch.span_begin,
            batch.link_indptr,
            batch.link_segment,
            batch.segment_page_indptr,
            batch.segment_page_ids,
            batch.segment_begin,
            batch.segment_num_tokens,
            num_qo_heads=config.num_qo_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            page_size=self.page_size,
            **self.runner.plan_options,
        )

    def _sample(
        self, job: Job, hidden: torch.Tensor, request_ids: np.ndarray, num_output_tokens: np.ndarray, clock: PhaseClock
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [R] and their log-probabilities float32 [R] for hidden [R, hidden_size]; a slice of the rows at
        a time, because logits are the largest activation."""
        tokens = np.empty(len(request_ids), np.int32)
        logprobs = np.empty(len(request_ids), np.float32)
        for begin in range(0, len(request_ids), ROWS_AT_ONCE):
            rows = slice(begin, begin + ROWS_AT_ONCE)
            with clock("forward"):
                logits = self.model.logits(hidden[rows])
            with clock("sample"):
                tokens[rows], logprobs[rows] = job.sampler.sample(
                    logits, request_ids[rows], num_output_tokens[rows], self.runner.ops
                )
        return tokens, logprobs

    def _stats(self, planner: ext.BatchPlanner, clock: PhaseClock) -> dict[str, Any]:
        counts = planner.stats
        names = "num_requests prompt_tokens computed_prompt_tokens recomputed_tokens output_tokens steps preemptions"
        return {
            **{name: counts[name] for name in names.split()},
            "peak_kv_tokens": counts["peak_pages"] * self.page_size,
            "seconds": dict(clock.seconds),
        }


class PhaseClock:
    """Seconds by phase: `with clock("forward"): ...`"""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._start


def job_pages(job: Job, segments: ext.Segments, page_size: int) -> int:
    """Pages that hold every segment and every request's own part at its longest, all at once."""
    segment_tokens = segments.token_end - segments.token_begin
    # A segment's end stands at the request's own beginning; the last token sampled is never written.
    ends = np.append(segments.token_end, 0)[segments.request_segment]
    own_tokens = np.diff(job.indptr) - ends + job.max_output_tokens - 1
    return int((-(-segment_tokens // page_size)).sum() + (-(-own_tokens // page_size)).sum())


def _progress(planner: ext.BatchPlanner, remaining_output_tokens: int, clock: PhaseClock) -> JobProgress:
    stats = planner.stats
    saved = stats["cached_prompt_tokens"]
    first_time = stats["computed_prompt_tokens"] - stats["recomputed_prompt_tokens"]
    return JobProgress(
        num_requests=stats["num_requests"],
        finished_requests=stats["finished"],
        scheduled_prompt_tokens=first_time + saved,
        saved_prompt_tokens=saved,
        output_tokens=stats["output_tokens"],
        remaining_output_tokens=remaining_output_tokens,
        elapsed_s=clock.elapsed_s,
    )
