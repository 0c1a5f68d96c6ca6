"""Structured outputs: tokens that would leave a request's grammar cannot be drawn."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from batchllm.request_table import End, LiveRequest, RequestTable
from batchllm.sampling.compile_grammar import GrammarCompiler, require_xgrammar
from batchllm.sampling.rules import LogitsRule, Rows
from batchllm.sampling.stop_tokens import StopTokens
from batchllm.sampling_params import SamplingParams

NO_TOKEN = "no token that may be drawn continues the grammar"


class Grammars(LogitsRule):
    """xgrammar fills the masks of a step for all rows at once; the draw skips the tokens that they exclude.

    A complete grammar allows a stop token; if the request has none, the request ends.
    """

    masks = True

    def __init__(self, compiler: GrammarCompiler, stop_tokens: StopTokens) -> None:
        """`stop_tokens` comes before this rule."""
        self._compiler, self._stop_tokens = compiler, stop_tokens

    def bind(self, requests: RequestTable) -> None:
        self._has_grammar = requests.column(bool, False)
        self._matchers: dict[int, Any] = {}  # xgrammar's, by id

    def concerns_params(self, params: SamplingParams) -> bool:
        return params.structured_outputs is not None

    def add(self, request: LiveRequest) -> None:
        grammar = request.params.structured_outputs
        assert grammar is not None
        stops = self._stop_tokens.token_ids(request).tolist()
        self._matchers[request.id] = require_xgrammar().GrammarMatcher(
            self._compiler.compile(grammar), override_stop_tokens=stops or None, terminate_without_stop_token=not stops
        )
        self._has_grammar.values[request.slot] = True

    def concerns(self, rows: Rows) -> np.ndarray | None:
        return self._has_grammar.at(rows.slots) if self._matchers else None

    def allowed(self, rows: Rows) -> Tensor:
        matchers = self._matchers_of(rows)
        allowed: Tensor = require_xgrammar().allocate_token_bitmask(len(rows), self._compiler.vocab_size)
        self._all_rows.batch_fill_next_token_bitmask(matchers, allowed)
        return allowed

    def after_draw(self, rows: Rows, tokens: np.ndarray) -> list[tuple[int, End]]:
        if not self._matchers:
            return []
        places = np.flatnonzero(self._has_grammar.at(rows.slots))
        matchers = self._matchers_of(rows.take(places))
        fits = self._all_rows.batch_accept_token(matchers, tokens[places].tolist())
        ends = []
        for row, matcher, fit in zip(places.tolist(), matchers, fits, strict=True):
            if not fit:
                ends.append((row, End(error=NO_TOKEN)))
            elif matcher.is_terminated():
                ends.append((row, End()))
        return ends

    def forget(self, request: LiveRequest) -> None:
        self._matchers.pop(request.id, None)

    @cached_property
    def _all_rows(self) -> Any:
        """On one thread: 256 rows take less than a millisecond, and more threads take longer."""
        return require_xgrammar().BatchGrammarMatcher(max_threads=1)

    def _matchers_of(self, rows: Rows) -> list[Any]:
        return [self._matchers[request_id] for request_id in rows.request_ids.tolist()]
