"""What a job takes at least: the arithmetic of each distinct prefix once, at the rate of matrix products.

Every row is counted through every layer, as engines run it. Ours does a little less: rows that do not sample end at the
last layer's K and V.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import batchllm_ext as ext
from batchllm.estimate.attention_work import num_attention_pairs
from batchllm.models.description import ModelDescription
from benchmarks.contestant import Request

FLOP_PER_WEIGHT = 2  # a multiplication and an addition


@dataclass(frozen=True)
class Work:
    """The rows of a job that somebody has to compute. No two outputs are taken to share anything."""

    distinct_prompt_tokens: int
    decode_tokens: int  # output tokens that are fed back: all but each request's last
    output_tokens: int
    attention_pairs: dict[int, int]  # by window_left: of a row and a key that it attends to

    @classmethod
    def of(cls, requests: list[Request], windows: Sequence[int] = (-1,)) -> Work:
        """windows: of the model's layers (ModelDescription.windows)."""
        num_tokens = np.array([len(request.prompt_token_ids) for request in requests])
        max_tokens = np.array([request.max_tokens for request in requests])
        indptr = np.concatenate([[0], np.cumsum(num_tokens)]).astype(np.int64)
        tokens = np.concatenate([np.array(request.prompt_token_ids, np.int32) for request in requests])
        trie = ext.PrefixTrie(tokens, indptr)

        own_begin = np.zeros(len(requests), np.int64)  # by rank: where the deepest shared run ends
        for node in range(trie.num_nodes):  # parents come first
            own_begin[trie.request_begin[node] : trie.request_end[node]] = trie.token_end[node]
        context_end = num_tokens + max_tokens - 1  # the last output token is not fed back
        return cls(
            distinct_prompt_tokens=trie.num_tokens,
            decode_tokens=int((max_tokens - 1).sum()),
            output_tokens=int(max_tokens.sum()),
            attention_pairs={
                window: pairs(trie.token_begin, trie.token_end, window) + pairs(own_begin, context_end, window)
                for window in windows
            },
        )

    def flop(self, model: ModelDescription) -> int:
        rows = self.distinct_prompt_tokens + self.decode_tokens
        linear = rows * model.num_linear_parameters + self.output_tokens * model.num_logit_parameters
        return FLOP_PER_WEIGHT * linear + int(model.attention_flops(self.attention_pairs.__getitem__))

    def bound_s(self, model: ModelDescription, gflop_per_s: float) -> float:
        return self.flop(model) / (gflop_per_s * 1e9)


def pairs(begin: np.ndarray, end: np.ndarray, window_left: int) -> int:
    """Keys that the rows at positions [begin, end) attend to, each up to itself, over all ranges; the sums over begins
    and over ends are apart, so the two may be in different orders."""
    up_to_end, up_to_begin = (num_attention_pairs(rows.astype(np.int64), window_left) for rows in (end, begin))
    return int((up_to_end - up_to_begin).sum())
