"""From logits to tokens and their log-probabilities: rules, then one call for all rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from batchllm.device.ops import Draw, DrawParams, Ops
from batchllm.device.transfer import to_device, upload
from batchllm.request_table import LiveRequest, RequestTable
from batchllm.sampling.draw import uniform_draws
from batchllm.sampling.rule_book import RuleBook
from batchllm.sampling.rules import Rows

WORD_BITS = 32  # of a mask: a bit per token


class Sampler:
    def __init__(self, requests: RequestTable, rules: RuleBook, device: torch.device) -> None:
        """`device`: of the logits."""
        self._rules, self._device = rules, device
        self._temperature = requests.column(np.float32)  # 0 is greedy
        self._top_k = requests.column(np.int32)  # 0 is off
        self._top_p = requests.column(np.float32, 1)  # 1 is off
        self._min_p = requests.column(np.float32)  # 0 is off
        self._seed = requests.column(np.uint64)
        self._most_greedy = self._greedy = DrawParams.greedy(0, device)

    def add(self, request: LiveRequest) -> None:
        params = request.params
        self._temperature.values[request.slot] = 0.0 if params.greedy else params.temperature
        self._top_k.values[request.slot] = max(params.top_k, 0)
        self._top_p.values[request.slot] = params.top_p
        self._min_p.values[request.slot] = params.min_p
        self._seed.values[request.slot] = request.seed

    def params_of(self, rows: Rows) -> DrawParams:
        """How to draw the tokens of these rows, on the device, without waiting for it. Nothing is uploaded if all are
        greedy."""
        slots = rows.slots
        if not self._temperature.values.any() or not (temperature := self._temperature.at(slots)).any():
            if len(rows) > len(self._most_greedy):
                self._most_greedy = DrawParams.greedy(2 * len(rows), self._device)
            if len(rows) != len(self._greedy):
                self._greedy = self._most_greedy.take(slice(len(rows)))
            return self._greedy
        uniform = uniform_draws(self._seed.at(slots), rows.num_output_tokens)
        filters = [column.at(slots) for column in (self._top_k, self._top_p, self._min_p)]
        drawn, temperatures, top_k, top_p, min_p = to_device([uniform, temperature, *filters], self._device)
        return DrawParams(temperatures, top_k, top_p, min_p, drawn)

    def draw(self, logits: Tensor, rows: Rows, params: DrawParams, ops: Ops, out: Draw) -> None:
        """The next token of each row, and its log-probability under the model (before rules, temperature and filters):
        not finite where one of the row's logits is not.

        logits: float32 or bfloat16 [R, vocab_size], on the device of ops; not changed. Nothing waits for the device
        unless a rule does.
        """
        ruled, bounded = self._concerned(rows, masks=False), self._concerned(rows, masks=True)
        changed = allowed = None
        if len(ruled):
            there, ruled_rows = to_device([ruled, places_of(ruled, len(rows))], logits.device)
            changed = (logits.index_select(0, there).float(), ruled_rows)
            self._apply_rules(changed[0], rows.take(ruled))
        if len(bounded):
            (bounded_rows,) = to_device([places_of(bounded, len(rows))], logits.device)
            allowed = (upload(self._allowed(rows.take(bounded), logits.shape[1]), logits.device), bounded_rows)
        ops.sample(logits, params, changed, allowed, out=out)

    def _concerned(self, rows: Rows, *, masks: bool) -> np.ndarray:
        """int64 [C], ascending: the rows that a rule of that kind concerns."""
        concerning = (rule.concerns(rows) for rule in self._rules.in_use if rule.masks == masks)
        concerned = [mask for mask in concerning if mask is not None]
        return np.flatnonzero(np.logical_or.reduce(concerned)) if concerned else np.empty(0, np.int64)

    def _apply_rules(self, logits: Tensor, rows: Rows) -> None:
        """Applies the rules that concern each row to logits [C, vocab_size]."""
        for rule in self._rules.in_use:
            mask = None if rule.masks else rule.concerns(rows)
            if mask is None or not mask.any():
                continue
            if mask.all():
                rule.before_draw(logits, rows)
                continue
            (places,) = to_device([np.flatnonzero(mask)], logits.device)
            part = logits[places]
            rule.before_draw(part, rows.take(mask))
            logits[places] = part

    def _allowed(self, rows: Rows, vocab_size: int) -> Tensor:
        """int32 [C, ceil(vocab_size / 32)]: the tokens that every masking rule allows."""
        allowed: Tensor | None = None
        for rule in self._rules.in_use:
            mask = rule.concerns(rows) if rule.masks else None
            if mask is None or not mask.any() or (bits := rule.allowed(rows.take(mask))) is None:
                continue
            if allowed is None and mask.all():
                allowed = bits  # nearly always: one rule masks, and these are its rows
                continue
            if allowed is None:
                allowed = all_allowed(len(rows), vocab_size)
            allowed[torch.from_numpy(mask)] &= bits
        return all_allowed(len(rows), vocab_size) if allowed is None else allowed


def all_allowed(num_rows: int, vocab_size: int) -> Tensor:
    return torch.full((num_rows, -(-vocab_size // WORD_BITS)), -1, dtype=torch.int32)


def places_of(some: np.ndarray, num_rows: int) -> np.ndarray:
    """int32 [num_rows]: each row's index in `some`, or -1."""
    places = np.full(num_rows, -1, np.int32)
    places[some] = np.arange(len(some))
    return places
