"""The common beginnings of prompts, as a tree in preorder.

It is a tree of text, not tokens: here a prefix ends with a word, while in the KV cache it may end a few tokens earlier
or later, or not be kept if it would not pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MIN_SHARED_CHARS = 40  # that a prefix must add to the one above it
MAX_WORD_CHARS = 30  # a longer one may be cut


class Row(NamedTuple):
    """A prefix with the rows below it, or a prompt."""

    end: int  # after the last row below it
    prompt: int | None  # of a prompt: its index; of a prefix: None
    text: str  # what it adds to the prefix above it
    num_prompts: int  # below a prefix; 1 of a prompt


def prefix_rows(texts: Sequence[str]) -> list[Row]:
    """Every text once, below the prefixes that it shares with others."""
    order = sorted(range(len(texts)), key=texts.__getitem__)
    sorted_texts = [texts[i] for i in order]
    prefixes = worth_telling(shared_prefixes(sorted_texts))
    rows: list[Row] = []
    open_prefixes: list[tuple[int, int, int]] = []  # its row, its range's end, its length

    def close(until: int) -> None:
        while open_prefixes and open_prefixes[-1][1] <= until:
            row = open_prefixes.pop()[0]
            rows[row] = rows[row]._replace(end=len(rows))

    next_prefix = 0
    for place, text in enumerate(sorted_texts):
        close(place)
        while next_prefix < len(prefixes) and prefixes[next_prefix][0] == place:
            begin, end, length = prefixes[next_prefix]
            above = open_prefixes[-1][2] if open_prefixes else 0
            open_prefixes.append((len(rows), end, length))
            rows.append(Row(0, None, text[above:length], end - begin))
            next_prefix += 1
        above = open_prefixes[-1][2] if open_prefixes else 0
        rows.append(Row(len(rows) + 1, order[place], text[above:], 1))
    close(len(texts))
    return rows


def shared_prefixes(sorted_texts: Sequence[str]) -> list[tuple[int, int, int]]:
    """(begin, end, length): each range of texts that share more characters than any wider one; preorder."""
    found: list[tuple[int, int, int]] = []
    stack = [(0, 0)]  # length, begin: of ranges that the next text may belong to
    for place in range(1, len(sorted_texts) + 1):
        is_last = place == len(sorted_texts)
        length = 0 if is_last else shared_length(sorted_texts[place - 1], sorted_texts[place])
        begin = place - 1
        while stack[-1][0] > length:
            closed_length, begin = stack.pop()
            found.append((begin, place, closed_length))
        if stack[-1][0] < length:
            stack.append((length, begin))
    return sorted(found, key=lambda prefix: (prefix[0], prefix[2]))


def worth_telling(prefixes: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    kept: list[tuple[int, int, int]] = []
    above: list[tuple[int, int, int]] = []
    for prefix in prefixes:
        while above and above[-1][1] <= prefix[0]:
            above.pop()
        if prefix[2] - (above[-1][2] if above else 0) >= MIN_SHARED_CHARS:
            kept.append(prefix)
            above.append(prefix)
    return kept


def shared_length(a: str, b: str) -> int:
    """The number of leading characters that both share, up to the end of a word; all if they are equal."""
    if a == b:
        return len(a)
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    shortest = max(low - MAX_WORD_CHARS, 0)
    return next((at for at in range(low, shortest, -1) if a[at - 1].isspace()), low)
