"""From logits to tokens and their log-probabilities: rules, greedy choice, draws."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from batchllm.device.ops import Ops
from batchllm.request_table import LiveRequest, RequestTable
from batchllm.sampling.draw import draw, uniform_draws
from batchllm.sampling.rules import LogitsRule, Rows

DRAWN_ROWS_AT_ONCE = 64  # each takes some 30 bytes per token of the vocabulary while it is drawn


class Sampler:
    def __init__(self, requests: RequestTable, rules: Sequence[LogitsRule] = ()) -> None:
        self._rules = rules
        self._temperature = requests.column(np.float32)  # 0 is greedy
        self._top_k = requests.column(np.int64)  # 0 is off
        self._top_p = requests.column(np.float32, 1)  # 1 is off
        self._seed = requests.column(np.uint64)

    def add(self, request: LiveRequest) -> None:
        params = request.params
        self._temperature.values[request.slot] = 0.0 if params.greedy else params.temperature
        self._top_k.values[request.slot] = max(params.top_k, 0)
        self._top_p.values[request.slot] = params.top_p
        self._seed.values[request.slot] = request.seed

    def sample(self, logits: Tensor, rows: Rows, ops: Ops) -> tuple[np.ndarray, np.ndarray]:
        """The next token of each row, int32 [R], and its log-probability under the model (before rules, temperature
        and filters), float32 [R]: not finite where one of the row's logits is not.

        logits float32 or bfloat16 [R, vocab_size], on the device that ops is for; not changed.
        """
        tokens, lse = ops.argmax_and_lse(logits)
        ruled, ruled_logits = self._apply_rules(logits, rows)
        if len(ruled):
            tokens[torch.as_tensor(ruled, device=logits.device)] = ops.argmax_and_lse(ruled_logits)[0]
        on_device = partial(torch.as_tensor, device=logits.device)
        drawn = np.flatnonzero(self._temperature.values[rows.slots] > 0)
        for begin in range(0, len(drawn), DRAWN_ROWS_AT_ONCE):
            places = drawn[begin : begin + DRAWN_ROWS_AT_ONCE]
            slots, places_on_device = rows.slots[places], on_device(places)
            tokens[places_on_device] = draw(
                _rows_of(logits, ruled, ruled_logits, places).float(),
                on_device(self._temperature.values[slots]),
                on_device(self._top_k.values[slots]),
                on_device(self._top_p.values[slots]),
                on_device(uniform_draws(self._seed.values[slots], rows.num_output_tokens[places])),
            ).int()
        logprobs = logits.gather(1, tokens.long()[:, None])[:, 0].float() - lse
        return tokens.cpu().numpy(), logprobs.cpu().numpy()

    def _apply_rules(self, logits: Tensor, rows: Rows) -> tuple[np.ndarray, Tensor]:
        """The rows that rules concern, int64 [C], and a copy of their logits as the rules leave them."""
        concerned = [mask for mask in (rule.concerns(rows) for rule in self._rules) if mask is not None]
        ruled = np.flatnonzero(np.logical_or.reduce(concerned)) if concerned else np.empty(0, np.int64)
        if len(ruled) == 0:
            return ruled, logits[:0]
        changed = logits[torch.as_tensor(ruled, device=logits.device)]
        of_changed = rows.take(ruled)
        for rule in self._rules:
            mask = rule.concerns(of_changed)
            if mask is None or not mask.any():
                continue
            if mask.all():
                rule.before_draw(changed, of_changed)
                continue
            places = torch.as_tensor(np.flatnonzero(mask), device=logits.device)
            part = changed[places]
            rule.before_draw(part, of_changed.take(mask))
            changed[places] = part
        return ruled, changed


def _rows_of(logits: Tensor, ruled: np.ndarray, ruled_logits: Tensor, rows: np.ndarray) -> Tensor:
    """These rows of the logits, as the rules leave them."""
    result = logits[torch.as_tensor(rows, device=logits.device)]
    _, here, there = np.intersect1d(rows, ruled, assume_unique=True, return_indices=True)
    if len(here):
        here_on_device, there_on_device = (torch.as_tensor(i, device=logits.device) for i in (here, there))
        result[here_on_device] = ruled_logits[there_on_device]
    return result
