"""`allowed_token_ids`: the only tokens that are drawn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from batchllm.request_table import End, LiveRequest, RequestTable
from batchllm.sampling.prepared import Prepared, places
from batchllm.sampling.rules import NO_TOKEN_LEFT, LogitsRule, Rows
from batchllm.sampling_params import SamplingParams


class AllowedTokens(LogitsRule):
    needs_tokens_before_draw = False

    def bind(self, requests: RequestTable) -> None:
        self._is_restricted = requests.column(bool)
        self._allowed = Prepared(
            lambda request: request.params.allowed_token_ids, lambda token_ids: np.unique(np.array(token_ids, np.int64))
        )

    def concerns_params(self, params: SamplingParams) -> bool:
        return params.allowed_token_ids is not None

    def add(self, request: LiveRequest) -> None:
        self._is_restricted.values[request.slot] = True

    def concerns(self, rows: Rows) -> np.ndarray | None:
        return self._is_restricted.at(rows.slots)

    def before_draw(self, logits: Tensor, rows: Rows) -> None:
        allowed = places([self._allowed(rows[row]) for row in range(len(rows))], logits.device)
        kept = logits[allowed]
        logits.fill_(-torch.inf)
        logits[allowed] = kept

    def after_draw(self, rows: Rows, tokens: np.ndarray) -> list[tuple[int, End]]:
        restricted = np.flatnonzero(self._is_restricted.at(rows.slots)).tolist()
        return [(row, NO_TOKEN_LEFT) for row in restricted if tokens[row] not in self._allowed(rows[row])]

    def forget(self, request: LiveRequest) -> None:
        self._allowed.forget(request)
