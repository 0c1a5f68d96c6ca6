"""Logits of a step's hidden states, and what is read from them: tokens and log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

import batchllm_ext as ext
from batchllm.device.ops import Draw, DrawParams
from batchllm.device.transfer import to_device
from batchllm.engine.figures import PhaseClock
from batchllm.engine.runner import Runner
from batchllm.models.forward_pass import ForwardPass
from batchllm.request_table import LiveRequest, RequestTable
from batchllm.sampling.logprobs import asks_for_logprobs, output_logprobs, prompt_logprobs
from batchllm.sampling.rule_book import RuleBook
from batchllm.sampling.rules import Rows
from batchllm.sampling.sampler import Sampler

SCORED_AT_ONCE = 256  # rows of logits, of which log-probabilities in float32 are made


class LogitsReader:
    """Makes logits of a slice of the rows at a time, because they are the largest activation."""

    def __init__(
        self, model: ForwardPass, runner: Runner, requests: RequestTable, rules: RuleBook, clock: PhaseClock
    ) -> None:
        self._model, self._runner, self._requests, self._clock = model, runner, requests, clock
        self._sampler = Sampler(requests, rules, model.device)
        self._asks_for_logprobs = requests.column(bool)

    def add(self, live: LiveRequest) -> None:
        if asks_for_logprobs(live.params):
            live.logprobs = []
            self._asks_for_logprobs.values[live.slot] = True
        self._sampler.add(live)

    def sample(self, hidden: torch.Tensor, batch: ext.TokenBatch, rows: Rows, out: Draw) -> list[Callable[[], None]]:
        """Draws a token for each of the rows. Returns functions that give requests the log-probabilities of other
        tokens that they ask for."""
        if len(batch.scored_rows):
            hidden = hidden[_places(batch.logit_rows, batch, hidden.device)]
        params = self._sampler.params_of(rows)
        any_asks = self._asks_for_logprobs.values.any()
        told: list[Callable[[], None]] = []
        for hidden_part, of_part, params_part, drawn in _at_once(
            hidden, rows, params, out, self._runner.logit_rows_at_once
        ):
            with self._clock.on_device("forward"):
                logits = self._model.logits(hidden_part)
            with self._clock.on_device("sample"):
                self._sampler.draw(logits, of_part, params_part, self._runner.ops, drawn)
                if any_asks and len(asking := np.flatnonzero(self._asks_for_logprobs.at(of_part.slots))):
                    (there,) = to_device([asking], logits.device)
                    told.append(output_logprobs(logits[there], of_part.take(asking), drawn.token_ids[there]))
        return told

    def score(self, hidden: torch.Tensor, batch: ext.TokenBatch) -> list[Callable[[], None]]:
        """Functions that give requests the scores of the prompt tokens that this step's rows predict."""
        scored, indptr = batch.scored_rows, batch.scores_indptr
        told = []
        for begin in range(0, len(scored), SCORED_AT_ONCE):
            rows = scored[begin : begin + SCORED_AT_ONCE]
            spans = [slice(indptr[i], indptr[i + 1]) for i in range(begin, begin + len(rows))]
            with self._clock.on_device("forward"):
                logits = self._model.logits(hidden[_places(rows, batch, hidden.device)])
            with self._clock.on_device("sample"):
                readers = [[self._requests[i] for i in batch.score_request_ids[span].tolist()] for span in spans]
                targets = [batch.score_token_ids[span] for span in spans]
                told.append(prompt_logprobs(logits, batch.positions[rows] + 1, readers, targets))
        return told


def _places(rows: np.ndarray, batch: ext.TokenBatch, device: torch.device) -> torch.Tensor:
    """int64 [len(rows)] on the device: the places of these rows, int32, in the batch's output_rows."""
    return to_device([np.searchsorted(batch.output_rows, rows)], device)[0]


def _at_once(
    hidden: torch.Tensor, rows: Rows, params: DrawParams, out: Draw, num_rows: int
) -> Iterator[tuple[torch.Tensor, Rows, DrawParams, Draw]]:
    """Up to `num_rows` of the rows."""
    if 0 < len(rows) <= num_rows:
        yield hidden[: len(rows)], rows, params, out
        return
    for begin in range(0, len(rows), num_rows):
        part = slice(begin, min(begin + num_rows, len(rows)))
        yield hidden[part], rows.take(part), params.take(part), out.take(part)
