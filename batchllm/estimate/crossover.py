"""Where sharing stops paying: the KV memory with which a cache does as well, and the prefix too short to be read
once."""

from __future__ import annotations

from collections.abc import Callable

from batchllm.models.description import ModelDescription

CLOSE = 1.01  # a policy does as well if it computes at most this many times our prompt tokens
PRECISION = 1.05  # of the memory that is searched for
STATE_ELEMENT_BYTES = 4  # out and lse of a partial attention state are float32


def smallest_close_kv_tokens(
    computed_prompt_tokens: Callable[[int], int], ours: int, smallest: int, largest: int, page_size: int
) -> int:
    """The KV memory, in tokens, from which on a policy computes within 1 % of `ours` prompt tokens, as it does at
    largest.

    computed_prompt_tokens: of the policy, as a function of KV tokens. It is searched by bisection to within 5 %, as if
    more memory never meant more computed tokens (a cache may violate that slightly).
    smallest: KV tokens in which the job can run at all. Both are whole pages.
    """
    if computed_prompt_tokens(smallest) <= CLOSE * ours:
        return smallest
    too_small, enough = smallest, largest
    while enough > PRECISION * too_small and enough - too_small > page_size:
        middle = round((too_small * enough) ** 0.5 / page_size) * page_size
        middle = min(max(middle, too_small + page_size), enough - page_size)
        if computed_prompt_tokens(middle) <= CLOSE * ours:
            enough = middle
        else:
            too_small = middle
    return enough


def shortest_shared_read(model: ModelDescription, num_readers: int) -> int | None:
    """The shortest prefix, in tokens, that a decode step reads in fewer bytes once than once per reader.

    Counts bytes of memory: num_readers - 1 reads of the prefix's K and V are saved, at the price of one more partial
    state per reader (out and lse, float32, of every query head in every layer), written by the kernel and read by the
    merge. FLOPs are the same either way, kernel launches are left out, and windows are taken to be longer than such a
    prefix. None for a single reader.
    """
    if num_readers < 2:
        return None
    num_elements = sum(attention.q_size + attention.num_qo_heads for attention in model.attention_of_layers)
    state_bytes = num_elements * STATE_ELEMENT_BYTES
    merge_bytes = num_readers * 2 * state_bytes
    saved_bytes_per_token = (num_readers - 1) * model.kv_bytes_per_token
    return merge_bytes // saved_bytes_per_token + 1
