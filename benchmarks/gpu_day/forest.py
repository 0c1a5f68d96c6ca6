"""Attention over shared prefixes in random pages, made where it runs: large shapes take no time on the host."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

import batchllm_ext as ext
from benchmarks.gpu_day.device import DEVICE, error_of, gpu_model, num_multiprocessors, randn, stream
from benchmarks.gpu_day.results import DRY

PAGE_SIZE = 16


@dataclass(frozen=True)
class Shape:
    """groups x readers requests: a prefix of so many tokens for each group, then own tokens of each request, the last
    rows_each of which are the rows of the batch (1: a decode, more: a prefill chunk)."""

    prefix: int
    readers: int
    own: int
    groups: int = 1
    rows_each: int = 1

    @property
    def num_requests(self) -> int:
        return self.groups * self.readers

    @property
    def num_rows(self) -> int:
        return self.num_requests * self.rows_each

    @property
    def context(self) -> int:
        """Tokens that the last row of a request sees."""
        return self.prefix + self.own


class Forest:
    """q [num_rows, Hq, D]; k_pages, v_pages [num_pages, PAGE_SIZE, Hkv, D]; bfloat16.

    Segments are numbered prefixes first, then each request's own part; chains[r] are those that request r reads.
    """

    def __init__(self, shape: Shape, *, heads: tuple[int, int], head_dim: int) -> None:
        self.shape, self.head_dim = shape, head_dim
        self.num_qo_heads, self.num_kv_heads = heads
        num_prefixes = shape.groups if shape.prefix else 0
        own = range(num_prefixes, num_prefixes + shape.num_requests)
        self.prefixes = [[group] for group in range(num_prefixes)]
        self.chains = [[*self.prefixes[r // shape.readers], s] if num_prefixes else [s] for r, s in enumerate(own)]
        self._num_tokens = [shape.prefix] * num_prefixes + [shape.own] * shape.num_requests
        self._page_indptr = np.cumsum([0, *(-(-tokens // PAGE_SIZE) for tokens in self._num_tokens)])
        self.num_pages = int(self._page_indptr[-1])
        self._page_ids = np.random.default_rng(0).permutation(self.num_pages)
        self.pages = [self._page_ids[begin:end] for begin, end in pairwise(self._page_indptr)]  # of each segment
        self.q = randn(shape.num_rows, self.num_qo_heads, head_dim)
        self.k_pages, self.v_pages = (randn(self.num_pages, PAGE_SIZE, self.num_kv_heads, head_dim) for _ in range(2))

    def plan(self, *, share: bool | str = True, multiprocessors: int | None = None) -> ext.AttentionPlan:
        """multiprocessors: of the GPU that it is balanced for; None is the one at hand."""
        shape = self.shape
        arrays = {
            "span_indptr": np.arange(shape.num_requests + 1) * shape.rows_each,
            "span_begin": [shape.context - shape.rows_each] * shape.num_requests,
            "link_indptr": np.cumsum([0, *map(len, self.chains)]),
            "link_segment": [segment for chain in self.chains for segment in chain],
            "segment_page_indptr": self._page_indptr,
            "segment_page_ids": self._page_ids,
            "segment_begin": [0] * len(self.prefixes) + [shape.prefix] * shape.num_requests,
            "segment_num_tokens": self._num_tokens,
        }
        return ext.plan_attention(
            **{name: np.asarray(values, np.int32) for name, values in arrays.items()},
            num_qo_heads=self.num_qo_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            page_size=PAGE_SIZE,
            num_threads=multiprocessors or num_multiprocessors(),
            share=share,
            device=gpu_model(),
        )

    @property
    def least_bytes(self) -> int:
        """K and V of every token, q and out, each once."""
        return 4 * sum(self._num_tokens) * self.num_kv_heads * self.head_dim + 2 * self.q.nbytes

    def slots(self, segment: int) -> torch.Tensor:
        """int64: where the tokens of a segment stand in the pages as rows."""
        slots = self.pages[segment][:, None] * PAGE_SIZE + np.arange(PAGE_SIZE)
        return torch.from_numpy(slots.ravel()[: self._num_tokens[segment]]).to(DEVICE)

    def gather(self, chain: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [num_tokens, Hkv, D] of a chain of segments, one after the other."""
        slots = torch.cat([self.slots(segment) for segment in chain])
        return self.k_pages.flatten(0, 1)[slots], self.v_pages.flatten(0, 1)[slots]

    def reference(self, request: int) -> torch.Tensor:
        """float64 [rows_each, Hq, D] of one request."""
        rows_each = self.shape.rows_each
        k, v = (rows.double() for rows in self.gather(self.chains[request]))
        q = self.q[request * rows_each :][:rows_each].double().unflatten(1, (self.num_kv_heads, -1))  # [T, Hkv, g, D]
        scores = torch.einsum("thgd,lhd->thgl", q, k) * self.head_dim**-0.5
        positions = torch.arange(len(k), device=DEVICE)
        sees = positions <= positions[-rows_each:, None]
        scores.masked_fill_(~sees[:, None, None], -torch.inf)
        return torch.einsum("thgl,lhd->thgd", torch.softmax(scores, -1), v).flatten(1, 2)

    def error(self, out: torch.Tensor, most: int = 4) -> float:
        """The largest relative error of `out` [num_rows, Hq, D] over so many requests."""
        rows_each, num_requests = self.shape.rows_each, self.shape.num_requests
        picked = np.linspace(0, num_requests - 1, min(most, num_requests)).astype(int).tolist()
        return max(error_of(out[r * rows_each :][:rows_each], self.reference(r)) for r in picked)


class Attention:
    """attention() of a plan over a forest: on a GPU by our kernels, in a dry run by the CPU's."""

    def __init__(self, forest: Forest, plan: ext.AttentionPlan) -> None:
        self._forest = forest
        self.out = torch.full_like(forest.q, torch.nan)
        self._lse = torch.empty(forest.q.shape[:2], device=DEVICE)
        self._plan: ext.AttentionPlan | ext.DevicePlan = plan
        if not DRY:
            layout = ext.PlanLayout(plan, forest.num_pages)
            packed = np.zeros(layout.num_ints, np.int32)
            layout.pack(plan, packed)
            workspace = torch.full((layout.num_workspace_floats,), torch.nan, device=DEVICE)
            self._plan = ext.DevicePlan(layout, torch.from_numpy(packed).to(DEVICE), workspace)

    def __call__(self, k_pages: torch.Tensor | None = None, v_pages: torch.Tensor | None = None) -> torch.Tensor:
        """Over these pages in place of the forest's own; returns `out`."""
        forest = self._forest
        k_pages = forest.k_pages if k_pages is None else k_pages
        v_pages = forest.v_pages if v_pages is None else v_pages
        where = {"num_threads": 2} if DRY else {"stream": stream()}
        ext.attention(self._plan, forest.q, k_pages, v_pages, out=self.out, lse=self._lse, **where)
        return self.out
