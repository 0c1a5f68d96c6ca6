"""What one attention plan makes of page tables: spans of rows, and the chain of segments that each of them reads.

A group of a level is a segment, which lies behind those of its rows in the levels above. Where there is one level, page
ids tell what is shared: requests whose pages begin alike read these from one segment, wherever their rows stand.

    request 0   pages 4 2 7          segment 4 2 ─┬─ 7
    request 1   pages 9              segment 9    │
    request 2   pages 4 2 5 1                     └─ 5 1
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import batchllm_ext as ext
from batchllm.integrations.flashinfer.levels import Level, ranges


@dataclass(frozen=True)
class Chains:
    link_indptr: np.ndarray  # [num_spans + 1] links of each span
    link_segment: np.ndarray  # [num_links]
    segment_begin: np.ndarray  # [num_segments] position of the first key
    segment_num_tokens: np.ndarray  # [num_segments]
    segment_num_pages: np.ndarray  # [num_segments]
    segment_page_ids: np.ndarray  # one segment's behind the other's
    end: np.ndarray  # [num_spans] position behind a span's last key


def attention_batch(
    levels: list[Level], page_size: int, *, causal: bool, window_left: int
) -> tuple[tuple[np.ndarray, ...], int]:
    """The eight arrays of ext.plan_attention, and its window_left.

    A row's keys are those of its groups, the first level's first. It stands as far before the end of them as it stands
    before the end of its group in the last level. A window counts from there; causal, it also sees nothing behind it.
    """
    last = levels[-1]
    bounds = np.unique(np.concatenate([level.qo_indptr for level in levels]))  # a span lies in one group of each level
    first_rows = bounds[:-1]
    chains = _of_levels(levels, first_rows) if len(levels) > 1 else _of_pages(last, first_rows, page_size)
    rows_to_end = last.qo_indptr[last.groups_of(first_rows) + 1] - first_rows
    # Not causal: all rows, and the window with them, are moved behind their last key.
    moved = 0 if causal else max(int(last.qo_len.max(initial=0)) - 1, 0)
    span_begin = chains.end - rows_to_end + moved
    shift = max(int(-span_begin.min(initial=0)), 0)  # positions begin at 0, also those in front of all keys
    arrays = (
        bounds,
        span_begin + shift,
        chains.link_indptr,
        chains.link_segment,
        np.concatenate([[0], np.cumsum(chains.segment_num_pages)]),
        chains.segment_page_ids,
        chains.segment_begin + shift,
        chains.segment_num_tokens,
    )
    window = min(window_left + moved, 2**31 - 1) if window_left >= 0 else -1
    return tuple(array.astype(np.int32) for array in arrays), window


def _of_levels(levels: list[Level], first_rows: np.ndarray) -> Chains:
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
    return Chains(
        link_indptr=np.arange(len(first_rows) + 1) * len(levels),
        link_segment=np.stack(links, axis=1).reshape(-1),
        segment_begin=np.concatenate(begins),
        segment_num_tokens=np.concatenate(lengths),
        segment_num_pages=np.concatenate(page_counts),
        segment_page_ids=np.concatenate(page_ids),
        end=ends[parents],
    )


def _of_pages(level: Level, first_rows: np.ndarray, page_size: int) -> Chains:
    """Only whole pages are shared: a request's last one, which may be filled in part, is always its own."""
    requests = level.groups_of(first_rows)
    page_ids, num_pages = level.pages_of(requests)
    indptr = np.concatenate([[0], np.cumsum(num_pages)])
    trie = ext.PrefixTrie(page_ids.astype(np.int32), indptr, drop_last=1)  # of pages instead of tokens
    shared = ext.choose_segments(trie)
    above = shared.request_segment
    own_begin = np.append(shared.token_end, 0)[above]  # in pages; the last element is that of -1, no segment
    columns: list[np.ndarray] = [shared.num_segments + np.arange(len(requests))]
    while (above >= 0).any():
        columns.insert(0, above)
        above = np.append(shared.parent, -1)[above]
    links = np.stack(columns, axis=1)  # root first; -1 in front of shorter chains
    owners = np.concatenate([shared.owner_request, np.arange(len(requests))])
    begin_pages = np.concatenate([shared.token_begin, own_begin])
    segment_num_pages = np.concatenate([shared.token_end, num_pages]) - begin_pages
    kv_len = level.kv_len[requests]
    shared_tokens = (shared.token_end - shared.token_begin) * page_size
    return Chains(
        link_indptr=np.concatenate([[0], np.cumsum((links >= 0).sum(axis=1))]),
        link_segment=links[links >= 0],
        segment_begin=begin_pages * page_size,
        segment_num_tokens=np.concatenate([shared_tokens, kv_len - own_begin * page_size]),
        segment_num_pages=segment_num_pages,
        segment_page_ids=page_ids[ranges(indptr[owners] + begin_pages, segment_num_pages)],
        end=kv_len,
    )
