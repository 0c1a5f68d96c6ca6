"""Log-probabilities of prompt tokens, from the rows that the planner marks for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from batchllm.outputs import Logprob
from batchllm.request_table import LiveRequest


def add_prompt_logprobs(
    logits: Tensor, positions: np.ndarray, requests: list[list[LiveRequest]], token_ids: list[np.ndarray]
) -> None:
    """Row i of logits [R, vocab_size] predicts, for each of requests[i], the token of its prompt at position
    positions[i], one of token_ids[i] (int32). Fills their prompt_logprobs in.

    Raises ValueError where a log-probability is not finite.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    most = max(request.params.prompt_logprobs or 0 for readers in requests for request in readers)
    likeliest, likeliest_ids = logprobs.topk(min(most, logprobs.shape[1]), dim=-1)
    top, top_ids = likeliest.cpu().numpy(), likeliest_ids.cpu().numpy()  # [R, most]
    indptr = np.cumsum([0, *map(len, token_ids)])
    rows = torch.as_tensor(np.repeat(np.arange(len(token_ids)), np.diff(indptr)), device=logits.device)
    wanted = torch.as_tensor(np.concatenate(token_ids).astype(np.int64), device=logits.device)
    own = logprobs[rows, wanted]
    own_ranks = (1 + (logprobs[rows] > own[:, None]).sum(dim=-1)).cpu().numpy()
    own_logprobs = own.cpu().numpy()
    if not np.isfinite(own_logprobs).all() and bool(logits.isnan().any() or logits.isposinf().any()):
        raise ValueError("the logits are not finite: weights of the model are not, or overflow")
    for i, readers in enumerate(requests):
        for j, request in enumerate(readers, start=int(indptr[i])):
            assert request.prompt_logprobs is not None
            asked = request.params.prompt_logprobs or 0
            entry = {
                int(token): Logprob(float(value), rank)
                for rank, (token, value) in enumerate(zip(top_ids[i, :asked], top[i, :asked], strict=True), start=1)
            }
            entry.setdefault(int(token_ids[i][j - indptr[i]]), Logprob(float(own_logprobs[j]), int(own_ranks[j])))
            request.prompt_logprobs[int(positions[i])] = entry
