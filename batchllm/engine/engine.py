"""The engine: add requests, step until nothing is left, abort what is no longer wanted.

A step plans a batch, runs it, draws tokens and commits them. Requests may be added between steps. Those added together
are planned together, and share what they have in common with each other and with what is in the pool.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

import batchllm_ext as ext
from batchllm.device.cpu_share import CpuTime
from batchllm.device.kv_cache import PagedKVCache
from batchllm.engine.engine_requests import EngineRequest, Finished, StepOutput, score_begins
from batchllm.engine.figures import PhaseClock, RunFigures
from batchllm.engine.in_flight import StepInFlight
from batchllm.engine.logits_reader import LogitsReader
from batchllm.engine.recorder import RunRecorder
from batchllm.engine.runner import Runner
from batchllm.models.forward_pass import ForwardPass
from batchllm.models.layer_spec import attention_plans, logit_plans, widest_window
from batchllm.options import READER_COST_TOKENS
from batchllm.outputs import JobProgress
from batchllm.request_table import RequestTable
from batchllm.sampling.rule_book import RuleBook
from batchllm.sampling.rules import LogitsRule, Rows

NO_IDS = np.empty(0, np.int32)


class Engine:
    """One model, one KV pool, any number of requests.

    An exception from `step` or `abort` ends all requests (logits that are not finite, a rule that fails), and so does
    Ctrl-C anywhere. The engine is then empty and takes new ones.
    """

    def __init__(
        self,
        model: ForwardPass,
        runner: Runner,
        rules: Sequence[LogitsRule],
        *,
        levels: int | None,
        page_size: int,
        kv_cache_tokens: int,
        max_batch_tokens: int,
    ) -> None:
        """Raises MemoryError if the machine has no room for a pool of kv_cache_tokens. On a CPU pages take memory when
        they are first written."""
        self.model, self.runner, self.rules = model, runner, rules
        self.levels, self.page_size, self.max_batch_tokens = levels, page_size, max_batch_tokens
        num_pages = kv_cache_tokens // page_size
        layers = [model.attention_kinds[kind] for kind in model.kind_of_layer]
        self.kv_cache = PagedKVCache.allocate(layers, num_pages, page_size, model.dtype, model.device)
        self.recorder: RunRecorder | None = None  # is told about added requests and about steps
        self._next_id = 0
        self._reset()

    def _reset(self) -> None:
        self.requests = RequestTable()
        self._rules = RuleBook(self.rules, self.requests)
        self._clock = PhaseClock(self.runner.new_event)
        self._reader = LogitsReader(self.model, self.runner, self.requests, self._rules, self._clock)
        self._num_output_tokens = self.requests.column(np.int32)
        self._max_output_tokens = self.requests.column(np.int32)
        self._logprob = self.requests.column(np.float64)  # of the tokens so far, summed
        self._remaining_tokens = 0  # the most that live requests may still generate
        self._num_ended_early = 0  # requests that generated less than their limit
        self._planned_prompt_tokens = 0  # to be computed, a shared prefix once
        self._planner: ext.BatchPlanner | None = None
        self._in_flight: StepInFlight | None = None
        self._num_steps = 0
        self._num_captures = self.runner.num_captures  # before
        self._cpu_before = CpuTime.now()

    @property
    def num_live(self) -> int:
        return len(self.requests)

    def add(self, requests: Sequence[EngineRequest]) -> list[range]:
        """Returns the ids of each request's completions. Ids ascend and are never reused.

        Raises ValueError, naming the index in `requests`, for a request that the pool can never hold or that a rule
        refuses; then none is added.
        """
        try:
            return self._add(requests)
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C: planner, table and rules may know different requests
                self._reset()
            raise

    def _add(self, requests: Sequence[EngineRequest]) -> list[range]:
        if self.num_live == 0:
            self._reset()
            self._planner = ext.BatchPlanner(
                num_pages=self.kv_cache.num_pages,
                page_size=self.page_size,
                max_batch_tokens=self.max_batch_tokens,
                first_request_id=self._next_id,
                window_left=widest_window(self.model.attention_kinds),
            )
        assert self._planner is not None
        if not requests:
            return []
        # Stored once for the planner and the table; a request's own array can be freed.
        prompts = np.concatenate([request.prompt_token_ids for request in requests])
        with self._clock("plan"):
            first = self._add_to_planner(self._planner, requests, prompts)
        self._next_id = first + sum(len(request.seeds) for request in requests)
        refused = dict(self._planner.refused)
        rules_of: dict[int, tuple[int, ...]] = {}  # by id of the parameters
        all_ids: list[range] = []
        next_id, end = first, 0
        try:
            for place, request in enumerate(requests):
                begin, end = end, end + len(request.prompt_token_ids)
                all_ids.append(ids := range(next_id, next_id + len(request.seeds)))
                next_id = ids.stop
                if refused and (why := next((refused[i] for i in ids if i in refused), None)):
                    raise ValueError(f"request {place}: {why}")
                if id(request.params) not in rules_of:
                    rules_of[id(request.params)] = self._rules.concerning(request.params)
                try:
                    self._add_to_table(request, prompts[begin:end], ids, rules_of[id(request.params)])
                except ValueError as error:
                    raise ValueError(f"request {place}: {error}") from error
        except BaseException:
            self._abort(np.arange(first, self._next_id, dtype=np.int32))
            raise
        return all_ids

    def _add_to_planner(self, planner: ext.BatchPlanner, requests: Sequence[EngineRequest], tokens: np.ndarray) -> int:
        indptr = np.zeros(len(requests) + 1, np.int64)
        np.cumsum([len(request.prompt_token_ids) for request in requests], out=indptr[1:])
        counts = np.array([len(request.seeds) for request in requests])
        prompt_of_request = np.repeat(np.arange(len(requests), dtype=np.int32), counts)
        rows = None if (counts == 1).all() else prompt_of_request
        bounds = np.array([request.max_output_tokens for request in requests], np.int32)
        known = np.array([request.params.ends_only_at_max_tokens for request in requests], bool)
        trie = ext.PrefixTrie(tokens, indptr, drop_last=1, prompt_of_request=rows)
        segments = ext.choose_segments(trie, levels=self.levels, reader_cost=READER_COST_TOKENS)
        first = planner.add_requests(
            tokens,
            indptr,
            segments,
            max_output_tokens=np.repeat(bounds, counts),
            expected_output_tokens=np.repeat(np.where(known, bounds, 0).astype(np.int32), counts),
            reader_cost=READER_COST_TOKENS,
            prompt_of_request=rows,
            score_begin=score_begins(requests, counts),
        )
        self._planned_prompt_tokens += segments.prompt_tokens - segments.saved_tokens
        if self.recorder:
            self.recorder.added(first, segments)
        return first

    def _add_to_table(self, request: EngineRequest, prompt: np.ndarray, ids: range, rules: tuple[int, ...]) -> None:
        params = request.params
        for request_id, seed in zip(ids, request.seeds, strict=True):
            live = self.requests.add(request_id, prompt, params, seed, request.max_output_tokens)
            self._max_output_tokens.values[live.slot] = live.max_output_tokens
            self._remaining_tokens += live.max_output_tokens
            if request.score_begin < len(prompt) and request_id == ids.start:
                live.prompt_logprobs = [None] * (len(prompt) - request.score_begin)
            self._reader.add(live)
            self._rules.add(live, rules)

    def abort(self, request_ids: Sequence[int]) -> None:
        """Ends requests without more output; ids of requests that are gone are ignored."""
        live = [request_id for request_id in dict.fromkeys(request_ids) if request_id in self.requests]
        if live:
            self._abort(np.array(live, np.int32))

    def _abort(self, request_ids: np.ndarray) -> None:
        assert self._planner is not None
        try:
            self._planner.abort(request_ids)
            self._forget(request_ids, self.requests.live_slots(request_ids))
        except BaseException:
            self._reset()
            raise

    @torch.inference_mode()
    def step(self) -> StepOutput | None:
        """Runs one forward pass and returns the tokens of one; None if nothing is left to do. On a device that runs
        behind the host they are those of the pass before, and the first call returns none.

        Raises ValueError for the first step whose logits are not finite, after which every answer would be worthless.
        """
        try:
            return self._step()
        except BaseException:
            self._reset()
            raise

    def _step(self) -> StepOutput | None:
        """A device that runs behind the host gets the next step before the tokens of the last one are read. If a rule
        must see them first, and on a CPU, one step follows the other."""
        planner = self._planner
        if planner is None:
            return None
        output: StepOutput | None = None
        before, self._in_flight = self._in_flight, None
        if before is not None and before.is_awaited:
            output, before = self._complete(before), None
        launched = self._in_flight = self._launch(planner)
        if before is not None:
            output = self._complete(before)
        if launched is None:
            return output
        if output is None and launched.is_awaited:
            self._in_flight = None
            return self._complete(launched)
        planner.advance()
        return StepOutput(NO_IDS, NO_IDS, []) if output is None else output

    def _launch(self, planner: ext.BatchPlanner) -> StepInFlight | None:
        """Plans a step and hands it to the device; None if nothing is left to plan."""
        clock = self._clock
        with clock("schedule"):
            batch = planner.next_batch()
            if batch is None:
                return None
            plans = self._plan_attention(batch)
            plans_of_logits = logit_plans(batch, plans)
        with clock.on_device("forward"):
            hidden = self.runner.forward(batch, plans, plans_of_logits, self.kv_cache)
        ids = batch.logit_request_ids
        slots = self.requests.slots(ids)
        rows = Rows(self.requests, ids, slots, self._num_output_tokens.at(slots))
        draw = self.runner.place_of_draw(len(rows))
        told = self._reader.sample(hidden, batch, rows, draw)
        if len(batch.scored_rows):
            told += self._reader.score(hidden, batch)
        drawn = self.runner.download(draw)
        self._num_steps += 1
        self._num_output_tokens.values[slots] = rows.num_output_tokens + 1
        self._remaining_tokens -= len(rows)
        return StepInFlight(self._num_steps, batch, rows, drawn, told, is_awaited=self._is_awaited(rows))

    def _is_awaited(self, rows: Rows) -> bool:
        """Whether the tokens of these rows must be known before the next ones are drawn."""
        if self.runner.new_event is None:
            return True
        rules = [rule for rule in self._rules.in_use if rule.needs_tokens_before_draw]
        if not rules:
            return False
        drawn_next = replace(rows, num_output_tokens=rows.num_output_tokens + 1)
        concerned = (rule.concerns(drawn_next) for rule in rules)
        return any(mask is not None and mask.any() for mask in concerned)

    def _complete(self, step: StepInFlight) -> StepOutput:
        """Reads the tokens of a step, and ends the requests that end with them."""
        planner, clock = self._planner, self._clock
        assert planner is not None
        with clock("sample" if self.runner.new_event is None else "wait"):
            sampled, logprobs = step.drawn()
        if not np.isfinite(logprobs).all():  # one logit of a row that is not makes them so
            raise ValueError(
                f"the logits are not finite since step {step.number} of the job: weights of the model are not, or "
                "overflow"
            )
        for tell in step.told:
            tell()
        rows, tokens = step.rows, sampled
        if step.is_gone is None:
            stopped = self._end(rows, tokens)
        else:
            kept = ~step.is_gone
            rows, tokens, logprobs = rows.take(kept), sampled[kept], logprobs[kept]
            stopped = np.zeros(len(sampled), bool)
            stopped[kept] = self._end(rows, tokens)
        self._logprob.values[rows.slots] += logprobs
        with clock("schedule"):
            done = planner.commit(sampled, stopped)
            finished = self._finish(done) if len(done) else []
            if self.recorder:
                self.recorder.stepped(step.batch, self.progress)
        return StepOutput(rows.request_ids, tokens, finished)

    def _plan_attention(self, batch: ext.TokenBatch) -> tuple[ext.AttentionPlan, ...]:
        return attention_plans(batch, self.model.attention_kinds, self.page_size, **self.runner.plan_options)

    def _end(self, rows: Rows, sampled: np.ndarray) -> np.ndarray:
        """bool [R]: the requests that a rule ends with their token of this step. The first such rule says why."""
        stopped = np.zeros(len(rows), bool)
        for rule in self._rules.in_use:
            for row, end in rule.after_draw(rows, sampled):
                if not stopped[row]:
                    stopped[row] = True
                    rows[row].end = end
        return stopped

    def _finish(self, request_ids: np.ndarray) -> list[Finished]:
        """int32 ids of ended requests, which are forgotten."""
        assert self._planner is not None
        slots = self.requests.slots(request_ids)
        requests = self.requests.at(slots)
        logprobs = self._logprob.at(slots).tolist()
        outputs = self._planner.outputs(request_ids)
        finished = [
            Finished(
                request_id=request.id,
                token_ids=token_ids,
                end=request.end,
                cumulative_logprob=logprob,
                num_cached_tokens=num_cached_tokens,
                logprobs=request.logprobs,
                prompt_logprobs=request.prompt_logprobs,
            )
            for request, logprob, (token_ids, num_cached_tokens) in zip(requests, logprobs, outputs, strict=True)
        ]
        self._forget(request_ids, slots)
        return finished

    def _forget(self, request_ids: np.ndarray, slots: np.ndarray) -> None:
        """int32 ids of ended requests, and int64 slots of those of them that the table knows."""
        assert self._planner is not None
        if self._in_flight is not None:
            self._in_flight.forget(slots)
        unused = self._max_output_tokens.at(slots) - self._num_output_tokens.at(slots)
        self._remaining_tokens -= int(unused.sum())
        self._num_ended_early += int(np.count_nonzero(unused))
        self._rules.forget(self.requests.at(slots))
        self.requests.remove(slots)
        self._planner.forget(request_ids)

    def audit(self) -> None:
        """Recomputes the planner's counts, and compares its requests with the table's. Raises RuntimeError."""
        if self._planner is None:
            return
        self._planner.audit()
        stats = self._planner.stats
        num_ending = 0 if self._in_flight is None else self._in_flight.num_ending()
        num_known = stats["running"] + stats["waiting"] + num_ending
        if num_known != self.num_live:
            raise RuntimeError(f"the planner has {num_known} requests, not {self.num_live}")
        if self.num_live == 0 and (stats["used_pages"] or self._remaining_tokens):
            raise RuntimeError(f"nothing is left, but {stats['used_pages']} pages are in use")

    @property
    def figures(self) -> RunFigures:
        if self._planner is None:
            return RunFigures()
        counts = self._planner.stats
        cpu = CpuTime.now().since(self._cpu_before)
        names = "num_requests prompt_tokens computed_prompt_tokens recomputed_tokens output_tokens steps preemptions"
        return RunFigures(
            **{name: counts[name] for name in names.split()},
            peak_kv_tokens=counts["peak_pages"] * self.page_size,
            captures=self.runner.num_captures - self._num_captures,
            num_threads=torch.get_num_threads(),
            cpu_s=cpu.ran_s,
            cpu_wait_s=cpu.waited_s,
            products=self.model.products,
            seconds=self._clock.seconds,
        )

    @property
    def elapsed_s(self) -> float:
        """Figures since the engine was last idle."""
        return self._clock.elapsed_s

    @property
    def progress(self) -> JobProgress:
        counts: dict[str, int] = defaultdict(int, self._planner.stats if self._planner else {})
        saved = counts["cached_prompt_tokens"]
        first_time = counts["computed_prompt_tokens"] - counts["recomputed_prompt_tokens"]
        return JobProgress(
            num_requests=counts["num_requests"],
            finished_requests=counts["finished"],
            scheduled_prompt_tokens=first_time + saved,
            saved_prompt_tokens=saved,
            output_tokens=counts["output_tokens"],
            remaining_output_tokens=self._remaining_tokens,
            elapsed_s=self._clock.elapsed_s,
            running_requests=counts["running"],
            waiting_requests=counts["waiting"],
            ended_early=self._num_ended_early,
            computed_prompt_tokens=counts["computed_prompt_tokens"],
            remaining_prompt_tokens=self._planned_prompt_tokens - first_time - counts["borrowed_prompt_tokens"],
            recomputed_tokens=counts["recomputed_tokens"],
            kv_tokens=counts["used_pages"] * self.page_size,
            peak_kv_tokens=counts["peak_pages"] * self.page_size,
            kv_cache_tokens=self.kv_cache.num_pages * self.page_size,
            steps=counts["steps"],
            preemptions=counts["preemptions"],
            seconds=dict(self._clock.seconds),
        )
