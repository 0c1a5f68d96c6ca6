"""`logit_bias`: added to the logits of some tokens."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from batchllm.device.transfer import to_device
from batchllm.request_table import LiveRequest, RequestTable
from batchllm.sampling.prepared import Prepared, places
from batchllm.sampling.rules import LogitsRule, Rows
from batchllm.sampling_params import SamplingParams


class LogitBias(LogitsRule):
    needs_tokens_before_draw = False

    def bind(self, requests: RequestTable) -> None:
        self._is_biased = requests.column(bool)
        self._biases = Prepared(lambda request: request.params.logit_bias, _arrays)

    def concerns_params(self, params: SamplingParams) -> bool:
        return bool(params.logit_bias)

    def add(self, request: LiveRequest) -> None:
        self._is_biased.values[request.slot] = True

    def concerns(self, rows: Rows) -> np.ndarray | None:
        return self._is_biased.at(rows.slots)

    def before_draw(self, logits: Tensor, rows: Rows) -> None:
        token_ids, biases = zip(*(self._biases(rows[row]) for row in range(len(rows))), strict=True)
        (added,) = to_device([np.concatenate(biases)], logits.device)
        logits[places(token_ids, logits.device)] += added

    def forget(self, request: LiveRequest) -> None:
        self._biases.forget(request)


def _arrays(logit_bias: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids, int64, and what is added to each, float32."""
    return np.array(list(logit_bias), np.int64), np.array(list(logit_bias.values()), np.float32)
