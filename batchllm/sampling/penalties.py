"""`repetition_penalty`, for tokens in prompt or output; `presence_penalty` and `frequency_penalty`, for tokens in the
output."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from batchllm.device.transfer import to_device
from batchllm.request_table import End, LiveRequest, RequestTable
from batchllm.sampling.prepared import Prepared, places
from batchllm.sampling.rules import LogitsRule, Rows
from batchllm.sampling.token_counts import TokenCounts
from batchllm.sampling_params import SamplingParams

NO_SET = -1


class Penalties(LogitsRule):
    def bind(self, requests: RequestTable) -> None:
        self._presence = requests.column(np.float32)
        self._frequency = requests.column(np.float32)
        self._repetition = requests.column(np.float32, 1)
        self._is_penalised = requests.column(bool)
        self._set_of = requests.column(np.int32, NO_SET)  # into _output, of those with a token
        self._output = TokenCounts()
        self._prompt = Prepared(lambda request: request.prompt_token_ids, np.unique)

    def concerns_params(self, params: SamplingParams) -> bool:
        return (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) != (0, 0, 1)

    def add(self, request: LiveRequest) -> None:
        params, slot = request.params, request.slot
        self._presence.values[slot] = params.presence_penalty
        self._frequency.values[slot] = params.frequency_penalty
        self._repetition.values[slot] = params.repetition_penalty
        self._is_penalised.values[slot] = True

    def concerns(self, rows: Rows) -> np.ndarray | None:
        return self._is_penalised.at(rows.slots)

    def before_draw(self, logits: Tensor, rows: Rows) -> None:
        def on_device(values: np.ndarray) -> Tensor:
            return to_device([values], logits.device)[0]

        with_output = np.flatnonzero(self._set_of.at(rows.slots) != NO_SET)
        which, token_ids, counts = self._output.entries(self._set_of.at(rows.slots[with_output]))
        of_output = with_output[which]
        in_output = (on_device(of_output), on_device(token_ids.astype(np.int64)))

        repetition = self._repetition.at(rows.slots)
        repeats = np.flatnonzero(repetition != 1)
        if len(repeats):
            prompt_rows, prompt_tokens = places([self._prompt(rows[row]) for row in repeats.tolist()], logits.device)
            at = (
                torch.cat([on_device(repeats)[prompt_rows], in_output[0]]),
                torch.cat([prompt_tokens, in_output[1]]),
            )
            values, penalty = logits[at], on_device(repetition)[at[0]]
            # A token of both prompt and output occurs twice, with the same value.
            logits[at] = torch.where(values > 0, values / penalty, values * penalty)
        frequency, presence = (column.at(rows.slots[of_output]) for column in (self._frequency, self._presence))
        logits[in_output] -= on_device(frequency * counts + presence)

    def after_draw(self, rows: Rows, tokens: np.ndarray) -> list[tuple[int, End]]:
        penalised = np.flatnonzero(self._is_penalised.at(rows.slots))
        slots = rows.slots[penalised]
        for slot in slots[self._set_of.at(slots) == NO_SET].tolist():
            self._set_of.values[slot] = self._output.new()
        self._output.add(self._set_of.at(slots), tokens[penalised])
        return []

    def forget(self, request: LiveRequest) -> None:
        self._prompt.forget(request)
        number = int(self._set_of.values[request.slot])
        if number != NO_SET:
            self._output.release(number)
