"""Log-probabilities of tokens under the model: of prompt tokens, from the rows that the planner marks for them, and of
output tokens, from the rows that they were drawn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from batchllm.device.transfer import to_device, to_host
from batchllm.outputs import Logprob
from batchllm.request_table import LiveRequest
from batchllm.sampling.rules import Rows
from batchllm.sampling_params import SamplingParams

NO_TOKENS = np.empty(0, np.int64)
RANKED_AT_ONCE = 64  # tokens, each compared with its whole row of logits


def asks_for_logprobs(params: SamplingParams) -> bool:
    """Of the tokens of its output."""
    return params.logprobs is not None or bool(params.logprob_token_ids)


def output_logprobs(logits: Tensor, rows: Rows, tokens: Tensor) -> Callable[[], None]:
    """tokens[i], int32 [R] on the device, of the request in rows[i] was drawn from row i of logits [R, vocab_size], as
    the model gives them. All of these requests ask for log-probabilities.

    Nothing waits for the device. Returns a function to call once the work queued so far is done; it appends to the
    logprobs of the requests that have not ended since.
    """
    requests = [rows[row] for row in range(len(rows))]
    others = [np.array(request.params.logprob_token_ids or (), np.int64) for request in requests]
    counts = [request.params.logprobs or 0 for request in requests]
    entries = _entries(logits, np.arange(len(rows)), counts, tokens.long(), others)

    def add() -> None:
        for request, entry in zip(requests, entries(), strict=True):
            if request.id in rows.requests:
                assert request.logprobs is not None
                request.logprobs.append(entry)

    return add


def prompt_logprobs(
    logits: Tensor, positions: np.ndarray, requests: list[list[LiveRequest]], token_ids: list[np.ndarray]
) -> Callable[[], None]:
    """Row i of logits [R, vocab_size] predicts, for each of requests[i], the token of its prompt at position
    positions[i], one of token_ids[i] (int32).

    Nothing waits for the device. Returns a function to call once the work queued so far is done; it fills in their
    prompt_logprobs, or raises ValueError if a logit is not finite.
    """
    row_of = np.repeat(np.arange(len(token_ids)), [len(ids) for ids in token_ids])
    readers = [request for of_row in requests for request in of_row]
    counts = [request.params.prompt_logprobs or 0 for request in readers]
    (targets,) = to_device([np.concatenate(token_ids, dtype=np.int64)], logits.device)
    entries = _entries(logits, row_of, counts, targets, [NO_TOKENS] * len(readers))
    (overflowed,) = to_host(logits.isnan().any() | logits.isposinf().any())

    def add() -> None:
        if overflowed:
            raise ValueError("the logits are not finite: weights of the model are not, or overflow")
        for request, row, entry in zip(readers, row_of, entries(), strict=True):
            assert request.prompt_logprobs is not None
            request.prompt_logprobs[int(positions[row]) - len(request.prompt_token_ids)] = entry  # from the end

    return add


def _entries(
    logits: Tensor, row_of: np.ndarray, counts: Sequence[int], tokens: Tensor, others: Sequence[np.ndarray]
) -> Callable[[], list[dict[int, Logprob]]]:
    """Entry i, of row row_of[i] of logits [R, vocab_size]: tokens[i], int64 [E] of the device, and others[i], then the
    counts[i] likeliest ones (-1 is all) in their order. They are there once the work queued so far is done."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    vocab_size = logprobs.shape[1]
    num_likeliest = [vocab_size if count < 0 else min(count, vocab_size) for count in counts]
    likeliest = logprobs.topk(max(num_likeliest, default=0), dim=-1)
    entry_of = np.concatenate([np.arange(len(others)), np.repeat(np.arange(len(others)), [len(ids) for ids in others])])
    rows, columns = to_device([row_of[entry_of], np.concatenate([NO_TOKENS, *others])], logits.device)
    columns = torch.cat([tokens, columns])
    own = logprobs[rows, columns]
    num_likelier = torch.cat(
        [
            (logprobs[some_rows] > some[:, None]).sum(dim=-1, dtype=torch.int32)
            for some_rows, some in zip(rows.split(RANKED_AT_ONCE), own.split(RANKED_AT_ONCE), strict=True)
        ]
    )
    is_second = (num_likelier == 0) & (columns != logits.argmax(dim=-1)[rows])  # of equal ones
    named_there = to_host(columns, own, 1 + num_likelier + is_second)
    likeliest_there = to_host(*likeliest)

    def entries() -> list[dict[int, Logprob]]:
        result: list[dict[int, Logprob]] = [{} for _ in others]
        named = zip(entry_of.tolist(), *(part.tolist() for part in named_there), strict=True)
        for entry, token, value, rank in named:
            result[entry].setdefault(token, Logprob(value, rank))
        values, token_ids = (part.numpy() for part in likeliest_there)
        for entry, row, count in zip(result, row_of, num_likeliest, strict=True):
            of_row = zip(token_ids[row, :count].tolist(), values[row, :count].tolist(), strict=True)
            for rank, (token, value) in enumerate(of_row, start=1):
                entry.setdefault(token, Logprob(value, rank))
        return result

    return entries
