"""Rules that change logits before a token is drawn or end a request afterwards, one class per rule.

A rule's own arrays are columns of the request table, so that a step's rows are looked at all at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from batchllm.request_table import End, LiveRequest, RequestTable
from batchllm.sampling_params import SamplingParams

# If rules leave a row no token, its draw is arbitrary; the rule whose ban it breaks ends the request with this.
NO_TOKEN_LEFT = End(error="allowed_token_ids, bad_words and other rules leave no token to draw")


@dataclass(frozen=True)
class Rows:
    """The requests that a step draws a token for, one row each."""

    requests: RequestTable
    request_ids: np.ndarray  # int32 [R]
    slots: np.ndarray  # int64 [R], into columns of the table
    num_output_tokens: np.ndarray  # int32 [R], so far

    def __len__(self) -> int:
        return len(self.request_ids)

    def __getitem__(self, row: int) -> LiveRequest:
        return self.requests[int(self.request_ids[row])]

    def take(self, rows: np.ndarray | slice) -> Rows:
        return Rows(self.requests, self.request_ids[rows], self.slots[rows], self.num_output_tokens[rows])


class LogitsRule:
    """The base class of rules. Its methods do nothing; a rule overrides those it needs.

    An engine calls `bind` once, and `add` and `forget` for every request whose parameters concern the rule (by default
    all). In each step it calls `concerns`, then `before_draw` for the rows concerned (or `allowed`, if the rule
    `masks`), and `after_draw` for all rows. Rules are called in their order.

    On a GPU `after_draw` comes one step late, after a request's next token has been asked for. A token after the one
    that ends the request is dropped.

    masks: whether `allowed` tells which tokens may be drawn, which costs less than changing logits.
    needs_tokens_before_draw: whether what `before_draw` does to a row depends on the tokens that it drew before. If
        not, it may be called before `after_draw` has seen the last of them, which `Rows.num_output_tokens` counts.
        Otherwise a step with rows that the rule concerns waits for the tokens of the step before; `concerns` is called
        for the next draw as soon as the rows are drawn.
    """

    masks: bool = False
    needs_tokens_before_draw: bool = True

    def bind(self, requests: RequestTable) -> None:
        """The table whose columns the rule may use."""

    def concerns_params(self, params: SamplingParams) -> bool:
        """Whether requests with these parameters are added to the rule; asked once for all that have the same."""
        return True

    def add(self, request: LiveRequest) -> None:
        """A request was added. Raises ValueError if it asks for what the rule cannot do; then it is not added."""

    def concerns(self, rows: Rows) -> np.ndarray | None:
        """bool [R]: the rows whose draw the rule changes; None is no row."""
        return None

    def before_draw(self, logits: Tensor, rows: Rows) -> None:
        """Changes logits [R, vocab_size], float32 on the device, in place; rows are those of `concerns`.
        Log-probabilities are those of the logits as they were."""

    def allowed(self, rows: Rows) -> Tensor | None:
        """The tokens that may be drawn in rows of `concerns`: int32 [R, ceil(vocab_size / 32)] on the CPU, where token
        i is bit i % 32 of word i / 32; None is all tokens. The caller may change it."""
        return None

    def after_draw(self, rows: Rows, tokens: np.ndarray) -> list[tuple[int, End]]:
        """The rows that end with their token of this step, int32 [R], and why."""
        return []

    def forget(self, request: LiveRequest) -> None:
        """A request is gone; if another rule refused it, it may never have been added to this one."""
