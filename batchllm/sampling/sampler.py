"""From logits to tokens and their log-probabilities: rules, then one call for all rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from batchllm.device.ops import DrawParams, Ops
from batchllm.device.transfer import to_device, upload
from batchllm.request_table import LiveRequest, RequestTable
from batchllm.sampling.draw import uniform_draws
from batchllm.sampling.rules import LogitsRule, Rows

WORD_BITS = 32  # of a mask: a bit per token


class Sampler:
    def __init__(self, requests: RequestTable, rules: Sequence[LogitsRule] = ()) -> None:
        self._rules = rules
        self._temperature = requests.column(np.float32)  # 0 is greedy
        self._top_k = requests.column(np.int32)  # 0 is off
        self._top_p = requests.column(np.float32, 1)  # 1 is off
        self._min_p = requests.column(np.float32)  # 0 is off
        self._seed = requests.column(np.uint64)

    def add(self, request: LiveRequest) -> None:
        params = request.params
        self._temperature.values[request.slot] = 0.0 if params.greedy else params.temperature
        self._top_k.values[request.slot] = max(params.top_k, 0)
        self._top_p.values[request.slot] = params.top_p
        self._min_p.values[request.slot] = params.min_p
        self._seed.values[request.slot] = request.seed

    def sample(self, logits: Tensor, rows: Rows, ops: Ops) -> tuple[np.ndarray, np.ndarray]:
        """sample_on_device, waited for and copied once."""
        tokens, logprobs = self.sample_on_device(logits, rows, ops)
        both = torch.stack((tokens, logprobs.view(torch.int32))).cpu().numpy()
        return both[0], both[1].view(np.float32)

    def sample_on_device(self, logits: Tensor, rows: Rows, ops: Ops) -> tuple[Tensor, Tensor]:
        """The next token of each row, int32 [R], and its log-probability under the model (before rules, temperature
        and filters), float32 [R]: not finite where one of the row's logits is not.

        logits float32 or bfloat16 [R, vocab_size], on the device that ops is for; not changed. Nothing waits for the
        device, as far as the rules do not.
        """
        ruled, bounded = self._concerned(rows, masks=False), self._concerned(rows, masks=True)
        uniform, temperature, top_k, top_p, min_p, ruled_rows, bounded_rows, ruled_there = to_device(
            [
                uniform_draws(self._seed.values[rows.slots], rows.num_output_tokens),
                self._temperature.values[rows.slots],
                self._top_k.values[rows.slots],
                self._top_p.values[rows.slots],
                self._min_p.values[rows.slots],
                places_of(ruled, len(rows)),
                places_of(bounded, len(rows)),
                ruled.astype(np.int32),
            ],
            logits.device,
        )
        params = DrawParams(temperature, top_k, top_p, min_p, uniform)
        changed = allowed = None
        if len(ruled):
            changed = (logits.index_select(0, ruled_there).float(), ruled_rows)
            self._apply_rules(changed[0], rows.take(ruled))
        if len(bounded):
            allowed = (upload(self._allowed(rows.take(bounded), logits.shape[1]), logits.device), bounded_rows)
        return ops.sample(logits, params, changed, allowed)

    def _concerned(self, rows: Rows, *, masks: bool) -> np.ndarray:
        """int64 [C], ascending: the rows that a rule of that kind concerns."""
        concerning = (rule.concerns(rows) for rule in self._rules if rule.masks == masks)
        concerned = [mask for mask in concerning if mask is not None]
        return np.flatnonzero(np.logical_or.reduce(concerned)) if concerned else np.empty(0, np.int64)

    def _apply_rules(self, logits: Tensor, rows: Rows) -> None:
        """Changes logits [C, vocab_size] as the rules do that concern each of the rows."""
        for rule in self._rules:
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
        """int32 [C, ceil(vocab_size / 32)]: what all rules that mask allow together."""
        allowed = torch.full((len(rows), -(-vocab_size // WORD_BITS)), -1, dtype=torch.int32)
        for rule in self._rules:
            mask = rule.concerns(rows) if rule.masks else None
            if mask is None or not mask.any():
                continue
            if (bits := rule.allowed(rows.take(mask))) is not None:
                allowed[torch.from_numpy(mask)] &= bits
        return allowed


def places_of(some: np.ndarray, num_rows: int) -> np.ndarray:
    """int32 [num_rows]: each row's place in `some`, -1 where it has none."""
    places = np.full(num_rows, -1, np.int32)
    places[some] = np.arange(len(some))
    return places
