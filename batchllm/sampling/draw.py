"""The randomness of draws: a stream of numbers per request, and the request's position in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def stream_seed(seed: int | str, sample: int, prompt_token_ids: Sequence[int] | np.ndarray) -> int:
    """64 bits for sample number `sample` of a prompt with this seed, so that requests with one seed draw different
    noise."""
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
    draws: np.ndarray = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return draws
