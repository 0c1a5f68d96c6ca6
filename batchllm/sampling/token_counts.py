"""The distinct tokens of many requests' outputs, with their counts."""

from __future__ import annotations

import numpy as np

FIRST_SETS, FIRST_TOKENS = 16, 16
NO_TOKEN = -1


class TokenCounts:
    """One set of tokens per request that has any, as rows of one matrix, so that a step's sets are handled at once."""

    def __init__(self) -> None:
        self._token_ids = np.full((FIRST_SETS, FIRST_TOKENS), NO_TOKEN, np.int32)  # in order of arrival
        self._counts = np.zeros((FIRST_SETS, FIRST_TOKENS), np.int32)
        self._sizes = np.zeros(FIRST_SETS, np.int32)
        self._free = list(reversed(range(FIRST_SETS)))

    def __len__(self) -> int:
        return len(self._sizes) - len(self._free)

    def new(self) -> int:
        """The number of an empty set."""
        if not self._free:
            num_sets = len(self._sizes)
            self._free = list(reversed(range(num_sets, 2 * num_sets)))
            self._token_ids = np.concatenate([self._token_ids, np.full_like(self._token_ids, NO_TOKEN)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._sizes = np.concatenate([self._sizes, np.zeros_like(self._sizes)])
        return self._free.pop()

    def release(self, number: int) -> None:
        self._token_ids[number] = NO_TOKEN
        self._counts[number] = self._sizes[number] = 0
        self._free.append(number)

    def add(self, numbers: np.ndarray, tokens: np.ndarray) -> None:
        """Adds one token, int32 [R], to each of R different sets."""
        if self._sizes[numbers].max(initial=0) == self._token_ids.shape[1]:
            room = np.full_like(self._token_ids, NO_TOKEN)
            self._token_ids = np.concatenate([self._token_ids, room], axis=1)
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)], axis=1)
        sizes = self._sizes[numbers]
        is_token = self._token_ids[numbers, : sizes.max(initial=0) + 1] == tokens[:, None]
        is_known = is_token.any(axis=1)
        places = np.where(is_known, is_token.argmax(axis=1), sizes)
        self._token_ids[numbers, places] = tokens
        self._counts[numbers, places] += 1
        self._sizes[numbers] += ~is_known

    def entries(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The entries of these R sets: the set, int64 [E], the token, int32 [E], and its count, int32 [E]."""
        sizes = self._sizes[numbers]
        rows, columns = np.nonzero(np.arange(sizes.max(initial=0)) < sizes[:, None])
        return rows, self._token_ids[numbers[rows], columns], self._counts[numbers[rows], columns]
