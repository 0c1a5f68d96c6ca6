"""Page tables in FlashInfer's form, and the spans, links and segments that one attention plan makes of them.

A level deals all rows to groups, each of which reads pages of its own; a row reads those of its group in every level:

    level 0   rows 0 1 2 3 4 5 ── pages 7 8            a segment at position 0, with six readers
    level 1   rows 0 1 2 ──────── page 3               a segment behind it, with three
              rows 3 4 5 ──────── pages 5 1            another one
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Level:
    """One level's groups. All arrays are int64."""

    qo_indptr: np.ndarray  # [num_groups + 1] rows of a group
    kv_indptr: np.ndarray  # [num_groups + 1] pages of a group
    page_ids: np.ndarray  # [kv_indptr[-1]]
    kv_len: np.ndarray  # [num_groups] keys of a group

    @property
    def qo_len(self) -> np.ndarray:
        return np.diff(self.qo_indptr)

    def groups_of(self, rows: np.ndarray) -> np.ndarray:
        """That each row is in; none of them is empty."""
        return np.searchsorted(self.qo_indptr, rows, side="right") - 1

    def pages_of(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Page ids of these groups, one group's behind the other's, and how many each has."""
        num_pages = np.diff(self.kv_indptr)[groups]
        places = np.arange(num_pages.sum()) - np.repeat(np.cumsum(num_pages) - num_pages, num_pages)
        return self.page_ids[np.repeat(self.kv_indptr[groups], num_pages) + places], num_pages


def new_level(page_size: int, **arguments: Tensor) -> Level:
    """Of an indptr of rows, an indptr of pages, page ids and lengths of last pages, in this order, by the names that
    errors give them. A group without pages has no keys, whatever its last page's length."""
    names = qo, kv, pages, last = list(arguments)
    arrays = {name: _ints(name, arguments[name]) for name in names}
    qo_indptr, kv_indptr, page_ids, last_page_len = arrays.values()
    for name in (qo, kv):
        _check_indptr(name, arrays[name])
    for name, size in ((kv, len(kv_indptr) - 1), (last, len(last_page_len))):
        if size != len(qo_indptr) - 1:
            raise ValueError(f"{name}: expected {len(qo_indptr) - 1} groups, those of {qo}, got {size}")
    if len(page_ids) < kv_indptr[-1]:
        raise ValueError(f"{pages}: expected {kv}[-1] = {kv_indptr[-1]} page ids, got {len(page_ids)}")
    page_ids = page_ids[: kv_indptr[-1]]
    _check_each(pages, (page_ids < 0) | (page_ids >= 2**31), page_ids, "a page id in [0, 2^31)")
    num_pages = np.diff(kv_indptr)
    wrong = (num_pages > 0) & ((last_page_len < 1) | (last_page_len > page_size))
    _check_each(last, wrong, last_page_len, f"a length in [1, {page_size}]")
    kv_len = np.where(num_pages > 0, (num_pages - 1) * page_size + last_page_len, 0)
    return Level(qo_indptr, kv_indptr, page_ids, kv_len)


def attention_batch(levels: list[Level], *, causal: bool, window_left: int) -> tuple[tuple[np.ndarray, ...], int]:
    """The eight arrays of ext.plan_attention, and its window_left.

    A row's keys are those of its groups, the first level's first. It stands as far before the end of them as it stands
    before the end of its group in the last level. A window counts from there; causal, it also sees nothing behind it.
    """
    last = levels[-1]
    bounds = np.unique(np.concatenate([level.qo_indptr for level in levels]))  # a span lies in one group of each level
    first_rows = bounds[:-1]
    links, begins, lengths, page_counts, page_ids = [], [], [], [], []
    num_segments = 0
    parents = np.zeros(len(first_rows), np.int64)  # of each span the segment above, within its level
    ends = np.zeros(1, np.int64)  # where the segments above end
    for level in levels:
        groups = level.groups_of(first_rows)
        paths = parents * len(level.kv_len) + groups
        _, first_spans, nodes = np.unique(paths, return_index=True, return_inverse=True)
        links.append(num_segments + nodes)
        begins.append(ends[parents[first_spans]])
        lengths.append(level.kv_len[groups[first_spans]])
        ids, counts = level.pages_of(groups[first_spans])
        page_ids.append(ids)
        page_counts.append(counts)
        num_segments += len(first_spans)
        parents, ends = nodes, begins[-1] + lengths[-1]
    groups = last.groups_of(first_rows)
    rows_to_end = last.qo_indptr[groups + 1] - first_rows  # of each span's first row to its group's end
    # Not causal: all rows, and the window with them, are moved behind their last key.
    moved = 0 if causal else max(int(last.qo_len.max(initial=0)) - 1, 0)
    span_begin = ends[parents] - rows_to_end + moved
    shift = max(int(-span_begin.min(initial=0)), 0)  # positions begin at 0, also those in front of all keys
    arrays = (
        bounds,
        span_begin + shift,
        np.arange(len(first_rows) + 1) * len(levels),
        np.stack(links, axis=1).reshape(-1),
        np.concatenate([[0], np.cumsum(np.concatenate(page_counts))]),
        np.concatenate(page_ids),
        np.concatenate(begins) + shift,
        np.concatenate(lengths),
    )
    window = min(window_left + moved, 2**31 - 1) if window_left >= 0 else -1
    return tuple(array.astype(np.int32) for array in arrays), window


def _ints(name: str, tensor: Tensor) -> np.ndarray:
    if not isinstance(tensor, Tensor) or tensor.is_floating_point() or tensor.ndim != 1:
        got = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name}: expected a tensor of integers with one dimension, got {got}")
    return tensor.cpu().numpy().astype(np.int64)


def _check_indptr(name: str, indptr: np.ndarray) -> None:
    if len(indptr) == 0 or indptr[0] != 0:
        raise ValueError(f"{name}: expected offsets that begin with 0, got {indptr[:1].tolist()}")
    _check_each(name, np.diff(indptr, prepend=0) < 0, indptr, "no less than the offset before")


def _check_each(name: str, wrong: np.ndarray, values: np.ndarray, expected: str) -> None:
    if wrong.any():
        index = int(wrong.argmax())
        raise ValueError(f"{name}[{index}]: expected {expected}, got {values[index]}")
