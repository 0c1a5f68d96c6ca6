"""From logits to tokens: greedy, temperature, top-k, top-p; a draw depends on a request's seed, prompt and length."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from batchllm.device.ops import CpuOps, Ops
from batchllm.sampling_params import SamplingParams

# Rows of logits that are alive at once: a vocabulary of 128,000 in bfloat16 is 0.25 MB a row. Fewer rows would read
# the output embedding, the largest matrix, more often.
ROWS_AT_ONCE = 256
DRAWN_ROWS_AT_ONCE = 64  # of these; each takes some 30 bytes a token of the vocabulary while it is drawn
DEFAULT_OPS = CpuOps()
NUM_CANDIDATES = 1024  # tokens that top-k and top-p look at before they sort the whole vocabulary


@dataclass
class Sampler:
    """The sampling parameters of a job as arrays over its n requests."""

    temperature: np.ndarray  # float32 [n]; 0 is greedy
    top_k: np.ndarray  # int64 [n]; 0 is off
    top_p: np.ndarray  # float32 [n]; 1 is off
    seed: np.ndarray  # uint64 [n]
    min_tokens: np.ndarray  # int32 [n]
    stop_set: np.ndarray  # int32 [n], into stop_sets
    stop_sets: list[np.ndarray]  # the distinct sets (int64) of tokens that end a request; usually one

    @classmethod
    def create(cls, params: Sequence[SamplingParams], seeds: np.ndarray, eos_token_ids: Sequence[int]) -> Sampler:
        """`seeds` uint64 [n], one a request (see `stream_seed`)."""
        stop_set, stop_sets = _stop_sets(params, eos_token_ids)
        return cls(
            temperature=np.array([0.0 if p.greedy else p.temperature for p in params], np.float32),
            top_k=np.array([max(p.top_k, 0) for p in params], np.int64),
            top_p=np.array([p.top_p for p in params], np.float32),
            seed=seeds,
            min_tokens=np.array([p.min_tokens for p in params], np.int32),
            stop_set=stop_set,
            stop_sets=stop_sets,
        )

    def sample(
        self, logits: Tensor, request_ids: np.ndarray, num_output_tokens: np.ndarray, ops: Ops = DEFAULT_OPS
    ) -> tuple[np.ndarray, np.ndarray]:
        """The next token of each row and its log-probability under the model (before temperature and filters).

        logits float32 or bfloat16 [R, vocab_size] (changed in place), on the device that ops is for; request_ids,
        num_output_tokens int32 [R]. Returns int32 [R] and float32 [R].
        """
        self._ban_early_stops(logits, request_ids, num_output_tokens)
        tokens, lse = ops.argmax_and_lse(logits)
        on_device = partial(torch.as_tensor, device=logits.device)
        drawn = np.flatnonzero(self.temperature[request_ids] > 0)
        for begin in range(0, len(drawn), DRAWN_ROWS_AT_ONCE):
            places = drawn[begin : begin + DRAWN_ROWS_AT_ONCE]
            ids, rows = request_ids[places], on_device(places)
            tokens[rows] = draw(
                logits[rows].float(),
                on_device(self.temperature[ids]),
                on_device(self.top_k[ids]),
                on_device(self.top_p[ids]),
                on_device(uniform_draws(self.seed[ids], num_output_tokens[places])),
            ).int()
        logprobs = logits.gather(1, tokens.long()[:, None])[:, 0].float() - lse
        return tokens.cpu().numpy(), logprobs.cpu().numpy()

    def ends(self, tokens: np.ndarray, request_ids: np.ndarray) -> np.ndarray:
        """bool [R]: the token is one that ends its request."""
        ended = np.zeros(len(tokens), bool)
        stop_set = self.stop_set[request_ids]
        for index in np.unique(stop_set):
            ended |= (stop_set == index) & np.isin(tokens, self.stop_sets[index])
        return ended

    def _ban_early_stops(self, logits: Tensor, request_ids: np.ndarray, num_output_tokens: np.ndarray) -> None:
        for row in np.flatnonzero(num_output_tokens < self.min_tokens[request_ids]):
            banned = self.stop_sets[self.stop_set[request_ids[row]]]
            logits[row, torch.as_tensor(banned, device=logits.device)] = -torch.inf


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


def _stop_sets(params: Sequence[SamplingParams], eos_token_ids: Sequence[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    index_of: dict[tuple[int, ...], int] = {}
    stop_set = np.empty(len(params), np.int32)
    for i, p in enumerate(params):
        ids = tuple(sorted({*(() if p.ignore_eos else eos_token_ids), *(p.stop_token_ids or ())}))
        stop_set[i] = index_of.setdefault(ids, len(index_of))
    return stop_set, [np.array(ids, np.int64) for ids in index_of]
