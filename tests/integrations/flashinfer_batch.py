"""A batch in FlashInfer's form, and its attention in float64: loops that know a row's keys in order."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from tests.reference import assert_close

NAN = float("nan")


@dataclass
class Batch:
    """Rows, and per level who shares which keys: (rows, keys) of each group. NaN is in every slot that no row may
    read."""

    levels: list[list[tuple[int, int]]]
    num_qo_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    page_size: int = 4
    seed: int = 0
    qo_indptr: list[np.ndarray] = field(init=False)
    kv_len: list[np.ndarray] = field(init=False)
    kv_indptr: list[np.ndarray] = field(init=False)
    page_ids: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.qo_indptr = [np.cumsum([0, *(rows for rows, _ in level)]) for level in self.levels]
        self.kv_len = [np.array([keys for _, keys in level]) for level in self.levels]
        self.kv_indptr = [np.cumsum([0, *-(-lengths // self.page_size)]) for lengths in self.kv_len]
        num_pages = [indptr[-1] for indptr in self.kv_indptr]
        ids = rng.permutation(sum(num_pages) + 3)
        self.page_ids = np.split(ids[: sum(num_pages)], np.cumsum(num_pages)[:-1])
        self.q = rng.standard_normal((self.qo_indptr[0][-1], self.num_qo_heads, self.head_dim)).astype(np.float32)
        shape = (len(ids), self.page_size, self.num_kv_heads, self.head_dim)
        self.k_pages, self.v_pages = (np.full(shape, NAN, np.float32) for _ in range(2))
        for level in range(len(self.levels)):
            for group in range(len(self.kv_len[level])):
                slots = self.slots(level, group)
                for pages in (self.k_pages, self.v_pages):
                    pages[slots] = rng.standard_normal((len(slots[0]), *shape[2:]))

    def slots(self, level: int, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Pages and offsets of a group's keys."""
        ids = self.page_ids[level][self.kv_indptr[level][group] : self.kv_indptr[level][group + 1]]
        places = np.arange(self.kv_len[level][group])
        return ids[places // self.page_size], places % self.page_size

    @property
    def last_page_len(self) -> list[np.ndarray]:
        return [np.where(lengths > 0, (lengths - 1) % self.page_size + 1, 0) for lengths in self.kv_len]

    @property
    def index_arrays(self) -> list[list[torch.Tensor]]:
        """qo_indptr, kv_indptr, page ids and last_page_len, a tensor per level."""
        arrays = (self.qo_indptr, self.kv_indptr, self.page_ids, self.last_page_len)
        return [[torch.tensor(level, dtype=torch.int32) for level in of_levels] for of_levels in arrays]

    @property
    def heads(self) -> tuple[int, int, int, int]:
        return self.num_qo_heads, self.num_kv_heads, self.head_dim, self.page_size

    def cache(self, layout: str, *, whole: bool, dtype: torch.dtype = torch.float32):
        k_pages, v_pages = (torch.from_numpy(pages).to(dtype) for pages in (self.k_pages, self.v_pages))
        if layout == "HND":
            k_pages, v_pages = k_pages.transpose(1, 2).contiguous(), v_pages.transpose(1, 2).contiguous()
        return torch.stack([k_pages, v_pages], dim=1) if whole else (k_pages, v_pages)


def reference(
    batch: Batch,
    *,
    causal: bool = False,
    window_left: int = -1,
    sm_scale: float | None = None,
    logits_soft_cap: float | None = None,
    sinks: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """out, and log-sum-exp to base 2."""
    scale = batch.head_dim**-0.5 if sm_scale is None else sm_scale
    group_size = batch.num_qo_heads // batch.num_kv_heads
    out, lse = np.zeros(batch.q.shape), np.full(batch.q.shape[:2], -np.inf)
    for row in range(len(batch.q)):
        keys, values = [], []
        for level, indptr in enumerate(batch.qo_indptr):
            group = int(np.flatnonzero(indptr <= row)[-1])
            slots = batch.slots(level, group)
            keys.append(batch.k_pages[slots])
            values.append(batch.v_pages[slots])
        k, v = np.concatenate(keys).astype(np.float64), np.concatenate(values).astype(np.float64)
        position = len(k) - (batch.qo_indptr[-1][group + 1] - row)
        end = max(position + 1, 0) if causal else len(k)
        begin = max(position - window_left, 0) if window_left >= 0 else 0
        for head in range(batch.num_qo_heads):
            scores = k[begin:end, head // group_size] @ batch.q[row, head].astype(np.float64) * scale
            if logits_soft_cap:
                scores = logits_soft_cap * np.tanh(scores / logits_soft_cap)
            weights = np.exp(scores)
            total = weights.sum() + (0.0 if sinks is None else np.exp(float(sinks[head])))
            if total > 0.0:
                out[row, head] = weights @ v[begin:end, head // group_size] / total
                lse[row, head] = np.log2(total)
    return out, lse


def check(got: tuple[torch.Tensor, torch.Tensor], expected: tuple[np.ndarray, np.ndarray], bound: float = 2e-5) -> None:
    for name, tensor, values in zip(("out", "lse"), got, expected, strict=True):
        assert_close(name, tensor.float().numpy(), values, bound)
