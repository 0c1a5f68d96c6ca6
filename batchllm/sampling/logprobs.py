"""Log-probabilities of tokens under the model: of prompt tokens, from the rows that the planner marks for them, and of
output tokens, from the rows that they were drawn from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from batchllm.outputs import Logprob
from batchllm.request_table import LiveRequest
from batchllm.sampling.prepared import places
from batchllm.sampling.rules import Rows
from batchllm.sampling_params import SamplingParams

RANKED_AT_ONCE = 64  # tokens, each of which is compared with its row of the vocabulary


def asks_for_logprobs(params: SamplingParams) -> bool:
    """Of the tokens of its output."""
    return params.logprobs is not None or bool(params.logprob_token_ids)


def add_logprobs(logits: Tensor, rows: Rows, tokens: np.ndarray) -> None:
    """Row i of logits [R, vocab_size], as the model gives them, is what tokens[i] of the request in rows[i] was drawn
    from. Appends to their logprobs. All of these requests ask for some."""
    requests = [rows[row] for row in range(len(rows))]
    wanted = [
        np.array([token, *(request.params.logprob_token_ids or ())], np.int64)
        for token, request in zip(tokens.tolist(), requests, strict=True)
    ]
    counts = [request.params.logprobs or 0 for request in requests]
    for request, entry in zip(requests, _entries(logits, np.arange(len(rows)), counts, wanted), strict=True):
        assert request.logprobs is not None
        request.logprobs.append(entry)


def add_prompt_logprobs(
    logits: Tensor, positions: np.ndarray, requests: list[list[LiveRequest]], token_ids: list[np.ndarray]
) -> None:
    """Row i of logits [R, vocab_size] predicts, for each of requests[i], the token of its prompt at position
    positions[i], one of token_ids[i] (int32). Fills their prompt_logprobs in.

    Raises ValueError where a log-probability is not finite.
    """
    row_of = np.repeat(np.arange(len(token_ids)), [len(ids) for ids in token_ids])
    readers = [request for of_row in requests for request in of_row]
    targets = np.concatenate(token_ids)
    counts = [request.params.prompt_logprobs or 0 for request in readers]
    entries = _entries(logits, row_of, counts, list(targets[:, None]))
    own = [entry[token].logprob for entry, token in zip(entries, targets.tolist(), strict=True)]
    if not np.isfinite(own).all() and bool(logits.isnan().any() or logits.isposinf().any()):
        raise ValueError("the logits are not finite: weights of the model are not, or overflow")
    for request, row, entry in zip(readers, row_of, entries, strict=True):
        assert request.prompt_logprobs is not None
        request.prompt_logprobs[int(positions[row]) - len(request.prompt_token_ids)] = entry  # from the end


def _entries(
    logits: Tensor, row_of: np.ndarray, counts: Sequence[int], token_ids: Sequence[np.ndarray]
) -> list[dict[int, Logprob]]:
    """Entry i, of row row_of[i] of logits [R, vocab_size]: the tokens token_ids[i], then the counts[i] likeliest ones
    (-1 is all) in their order."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    vocab_size = logprobs.shape[1]
    num_likeliest = [vocab_size if count < 0 else min(count, vocab_size) for count in counts]
    likeliest, likeliest_ids = (part.cpu().numpy() for part in logprobs.topk(max(num_likeliest, default=0), dim=-1))
    entry_of, columns = places(token_ids, logits.device)
    rows = torch.as_tensor(row_of, device=logits.device)[entry_of]
    own = logprobs[rows, columns]
    ranks = [
        1 + (logprobs[some_rows] > some[:, None]).sum(dim=-1)
        for some_rows, some in zip(rows.split(RANKED_AT_ONCE), own.split(RANKED_AT_ONCE), strict=True)
    ]
    entries: list[dict[int, Logprob]] = [{} for _ in token_ids]
    own_values = zip(*(part.tolist() for part in (entry_of, columns, own, torch.cat(ranks))), strict=True)
    for entry, token, value, rank in own_values:
        entries[entry].setdefault(token, Logprob(value, rank))
    for entry, row, count in zip(entries, row_of, num_likeliest, strict=True):
        of_row = zip(likeliest_ids[row, :count].tolist(), likeliest[row, :count].tolist(), strict=True)
        for rank, (token, value) in enumerate(of_row, start=1):
            entry.setdefault(token, Logprob(value, rank))
    return entries
