"""One token per row of logits, by temperature, top-k and top-p; and where randomness comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

NUM_CANDIDATES = 1024  # tokens that top-k and top-p look at before they sort the whole vocabulary


def draw(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """One token a row from the filtered softmax, by inverting its cumulative sum in vocabulary order.

    logits float32 [R, V]; temperature, top_p float32 [R]; top_k int64 [R]; uniform float64 [R] in [0, 1).
    Every step is row by row, so what else is in the batch changes nothing. Returns int64 [R].
    """
    probs = torch.softmax(logits / temperature[:, None], dim=-1)
    filtered = torch.nonzero((top_k > 0) | (top_p < 1))[:, 0]
    if len(filtered):
        probs[filtered] = _filter(probs[filtered], top_k[filtered], top_p[filtered])
    cumulative = probs.double().cumsum(dim=-1)
    targets = uniform * cumulative[:, -1]
    # right=True steps over tokens of probability zero; rounding may still land one past the end.
    tokens = torch.searchsorted(cumulative, targets[:, None], right=True)[:, 0]
    return tokens.clamp_(max=logits.shape[1] - 1)


def _filter(probs: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Zeroes what top-k and top-p leave out: the smallest set of likeliest tokens whose mass reaches top_p of what
    top-k leaves. Of equally likely tokens those with lower ids are likelier.

    The likeliest NUM_CANDIDATES usually decide; only rows whose set is larger sort their whole vocabulary.
    """
    vocab_size = probs.shape[1]
    num_candidates = min(NUM_CANDIDATES, vocab_size)
    top_k = torch.where((top_k > 0) & (top_k < vocab_size), top_k, vocab_size)
    ordered = probs.topk(num_candidates, dim=-1).values
    reaches = ordered.double().sum(dim=-1) >= top_p.double() * probs.double().sum(dim=-1)
    decided = (top_k <= num_candidates) | ((top_k == vocab_size) & (top_p < 1) & reaches)
    threshold, num_equal = torch.empty_like(probs[:, 0]), torch.empty_like(top_k)
    for rows, values in ((decided, ordered[decided]), (~decided, probs[~decided].sort(dim=-1, descending=True).values)):
        if len(values):
            total = probs[rows].double().sum(dim=-1)
            threshold[rows], num_equal[rows] = _cut(values, top_k[rows], top_p[rows], total)
    kept = probs >= threshold[:, None]
    equal = probs == threshold[:, None]
    for row in torch.nonzero(equal.sum(dim=-1) > num_equal)[:, 0].tolist():
        kept[row] &= ~equal[row] | (equal[row].cumsum(dim=0) <= num_equal[row])
    return probs * kept


def _cut(ordered: Tensor, top_k: Tensor, top_p: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """The least probability that is kept, float32 [R], and how many tokens with exactly that are, int64 [R].

    ordered float32 [R, C]: the likeliest probabilities, descending; total float64 [R]: the mass of all.
    """
    num_candidates = ordered.shape[1]
    mass = ordered.double().cumsum(dim=-1)
    allowed = torch.arange(num_candidates, device=ordered.device) < top_k[:, None]
    whole = torch.where(top_k <= num_candidates, (ordered.double() * allowed).sum(dim=-1), total)
    allowed &= (top_p[:, None] >= 1) | (mass - ordered < top_p.double()[:, None] * whole[:, None])
    last = (allowed.sum(dim=-1, keepdim=True) - 1).clamp_(min=0)
    threshold = ordered.gather(1, last)
    return threshold[:, 0], (allowed & (ordered == threshold)).sum(dim=-1)


def stream_seed(seed: int | str, sample: int, prompt_token_ids: Sequence[int] | np.ndarray) -> int:
    """64 bits for sample number `sample` of a prompt with this seed: one seed for a whole job is not one noise."""
    hashed = hashlib.blake2b(f"{seed}/{sample}/".encode(), digest_size=8)
    hashed.update(np.asarray(prompt_token_ids, "<i4").tobytes())
    return int.from_bytes(hashed.digest(), "little")


def uniform_draws(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """float64 [R] in [0, 1): a hash (the SplitMix64 finaliser) of (seed, position); 53 random bits.

    seeds uint64 [R]; positions int [R], the number of tokens the request has generated so far.
    """
    with np.errstate(over="ignore"):
        bits = seeds + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
