"""Requests in a table, and rows of them, for tests of rules and of the sampler without an engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from batchllm import SamplingParams
from batchllm.device.ops import Draw, Ops
from batchllm.request_table import End, RequestTable
from batchllm.sampling.draw import stream_seed
from batchllm.sampling.rule_book import RuleBook
from batchllm.sampling.rules import LogitsRule, Rows
from batchllm.sampling.sampler import Sampler


class Requests:
    """Request i has params[i], prompts[i] and seeds[i]; every rule knows it."""

    def __init__(
        self,
        params: Sequence[SamplingParams],
        rules: Sequence[LogitsRule],
        *,
        prompts: Sequence[Sequence[int]] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> None:
        self.table = RequestTable()
        self.rules = RuleBook(rules, self.table)
        self.sampler = Sampler(self.table, self.rules, torch.device("cpu"))
        for request_id, p in enumerate(params):
            prompt = np.array([1] if prompts is None else prompts[request_id], np.int32)
            seed = stream_seed(p.seed or 0, 0, []) if seeds is None else seeds[request_id]
            self.add(request_id, prompt, p, seed)

    def add(self, request_id: int, prompt: np.ndarray, params: SamplingParams, seed: int = 0) -> None:
        request = self.table.add(request_id, prompt, params, seed, 1000)
        self.sampler.add(request)
        self.rules.add(request, self.rules.concerning(params))

    def rows(self, request_ids: Sequence[int], num_output_tokens: Sequence[int]) -> Rows:
        ids = np.array(request_ids, np.int32)
        return Rows(self.table, ids, self.table.slots(ids), np.array(num_output_tokens, np.int32))

    def sample(self, logits: Tensor, rows: Rows, ops: Ops) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [R] and log-probabilities float32 [R], drawn from logits [R, vocab_size]."""
        out = Draw.of(len(rows), logits.device)
        self.sampler.draw(logits, rows, self.sampler.params_of(rows), ops, out)
        return out.token_ids.numpy(), out.logprobs.numpy()

    def ends(
        self, request_ids: Sequence[int], num_output_tokens: Sequence[int], tokens: Sequence[int]
    ) -> dict[int, End]:
        """By request, what the rules say of these tokens; num_output_tokens counts those before them."""
        rows = self.rows(request_ids, num_output_tokens)
        drawn = np.array(tokens, np.int32)
        return {request_ids[row]: end for rule in self.rules.in_use for row, end in rule.after_draw(rows, drawn)}

    def forget(self, request_id: int) -> None:
        request = self.table[request_id]
        self.rules.forget([request])
        self.table.remove(np.array([request.slot]))
