"""Page tables in FlashInfer's form. A level deals all rows to groups, each of which reads pages of its own:

level 0   rows 0 1 2 3 4 5 ── pages 7 8
level 1   rows 0 1 2 ──────── page 3
          rows 3 4 5 ──────── pages 5 1
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
        return self.page_ids[ranges(self.kv_indptr[groups], num_pages)], num_pages


def ranges(begins: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The numbers from each begin on, as many as its size, one range behind the other."""
    return np.arange(sizes.sum()) + np.repeat(begins - np.cumsum(sizes) + sizes, sizes)


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
