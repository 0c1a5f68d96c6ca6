"""Runs a planned job against a KV store that remembers tokens instead of keys and values.

Every row of every batch writes (token, position) to its slot; then each row reads back all that it may see. It must
read exactly its own context: token i of the prompt and of what was generated so far, at position i, and nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

import batchllm_ext as ext

UNWRITTEN = -1


def ragged(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """prompts -> tokens int32[T], indptr int64[n + 1]"""
    indptr = np.zeros(len(prompts) + 1, np.int64)
    np.cumsum([len(prompt) for prompt in prompts], out=indptr[1:])
    tokens = np.array([token for prompt in prompts for token in prompt], np.int32)
    return tokens, indptr


def make_planner(
    prompts: Sequence[Sequence[int]],
    max_output_tokens: Sequence[int],
    num_pages: int,
    *,
    levels: int | None = None,
    segments: ext.Segments | None = None,
    **options: object,
) -> ext.BatchPlanner:
    tokens, indptr = ragged(prompts)
    if segments is None:
        segments = ext.choose_segments(ext.PrefixTrie(tokens, indptr, drop_last=1), levels)
    max_output = np.array(max_output_tokens, np.int32)
    return ext.BatchPlanner(tokens, indptr, segments, max_output_tokens=max_output, num_pages=num_pages, **options)


def add_requests(
    planner: ext.BatchPlanner,
    prompts: Sequence[Sequence[int]],
    max_output_tokens: Sequence[int],
    *,
    levels: int | None = None,
    reader_cost: float = 0.0,
) -> int:
    tokens, indptr = ragged(prompts)
    segments = ext.choose_segments(ext.PrefixTrie(tokens, indptr, drop_last=1), levels)
    max_output = np.array(max_output_tokens, np.int32)
    return planner.add_requests(tokens, indptr, segments, max_output_tokens=max_output, reader_cost=reader_cost)


def next_token(request: int, context: Sequence[int]) -> int:
    """The model: a token that depends on all of the context."""
    return (hash((request, tuple(context))) & 0x7FFF) + 1000


def never(request: int, num_output_tokens: int) -> bool:
    return False


@dataclass
class Replay:
    """What a job did."""

    finish_order: list[int] = field(default_factory=list)
    outputs: dict[int, list[int]] = field(default_factory=dict)
    num_computed: dict[tuple[int, ...], int] = field(default_factory=dict)  # rows that computed a context's end
    batches: list[ext.TokenBatch] = field(default_factory=list)


def spans_of(batch: ext.TokenBatch) -> list[tuple[range, range, list[int]]]:
    """(rows, positions, linked segments) of every span."""
    spans = []
    for i in range(batch.num_spans):
        rows = range(batch.span_indptr[i], batch.span_indptr[i + 1])
        begin = int(batch.span_begin[i])
        links = batch.link_segment[batch.link_indptr[i] : batch.link_indptr[i + 1]]
        spans.append((rows, range(begin, begin + len(rows)), links.tolist()))
    return spans


class TokenStore:
    """The KV pool, with a (token, position) in place of each key and value."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.tokens = np.full(num_pages * page_size, UNWRITTEN, np.int64)
        self.positions = np.full(num_pages * page_size, UNWRITTEN, np.int64)

    def write(self, batch: ext.TokenBatch) -> None:
        assert len(set(batch.slots.tolist())) == batch.num_tokens, "two rows write one slot"
        self.tokens[batch.slots] = batch.token_ids
        self.positions[batch.slots] = batch.positions

    def read_row(self, batch: ext.TokenBatch, links: list[int], position: int) -> list[int]:
        """The context that a row sees, segment by segment; checks that it is gapless."""
        context: list[int] = []
        for segment in links:
            begin = int(batch.segment_begin[segment])
            end = min(begin + int(batch.segment_num_tokens[segment]), position + 1)
            assert begin == len(context), "a segment continues its parent"
            pages = batch.segment_page_ids[batch.segment_page_indptr[segment] : batch.segment_page_indptr[segment + 1]]
            offsets = np.arange(end - begin)
            slots = pages[offsets // self.page_size].astype(np.int64) * self.page_size + offsets % self.page_size
            assert self.positions[slots].tolist() == list(range(begin, end)), "K/V of another position"
            context += self.tokens[slots].tolist()
        assert len(context) == position + 1, "a row sees all positions up to its own"
        return context


def replay(
    planner: ext.BatchPlanner,
    prompts: Sequence[Sequence[int]],
    *,
    page_size: int,
    is_finished: Callable[[int, int], bool] = never,
    max_batch_tokens: int | None = None,
    audit: bool = True,
    in_flight: Callable[[int], None] = lambda step: None,
) -> Replay:
    """Runs the job to its end and checks every batch; is_finished(request, num_output_tokens) ends requests early.
    in_flight(step) runs between next_batch and commit, and may add requests (to `prompts`, too)."""
    store = TokenStore(planner.stats["num_pages"], page_size)
    result = Replay(outputs=defaultdict(list))
    while (batch := planner.next_batch()) is not None:
        in_flight(len(result.batches))
        if audit:
            planner.audit()
        result.batches.append(batch)
        assert batch.num_tokens >= 1
        check_shape_of(batch, page_size, max_batch_tokens)
        store.write(batch)
        logits = dict(zip(batch.logit_rows.tolist(), batch.logit_request_ids.tolist(), strict=True))
        for rows, positions, links in spans_of(batch):
            for row, position in zip(rows, positions, strict=True):
                context = store.read_row(batch, links, position)
                assert context[-1] == batch.token_ids[row]
                result.num_computed[tuple(context)] = result.num_computed.get(tuple(context), 0) + 1
                if row in logits:
                    request = logits[row]
                    expected = [*prompts[request], *result.outputs[request]]
                    assert context == expected, f"request {request} reads another context"
        check_logit_batch(batch, store)
        sampled, finished = [], []
        for request in batch.logit_request_ids.tolist():
            output = result.outputs[request]
            output.append(next_token(request, [*prompts[request], *output]))
            sampled.append(output[-1])
            finished.append(is_finished(request, len(output)))
        done = planner.commit(np.array(sampled, np.int32), np.array(finished, bool))
        result.finish_order += done.tolist()
        if audit:
            planner.audit()
    check_end(planner, result)
    return result


def check_logit_batch(batch: ext.TokenBatch, store: TokenStore) -> None:
    """Its spans are the rows that sample, one each, and read what they read in the whole batch."""
    logit_batch = batch.logit_batch()
    check_shape_of(logit_batch, store.page_size, None)
    for name in ("token_ids", "positions", "slots"):
        assert np.array_equal(getattr(logit_batch, name), getattr(batch, name)[batch.logit_rows])
    assert np.array_equal(logit_batch.logit_rows, np.arange(len(batch.logit_rows)))
    assert np.array_equal(logit_batch.logit_request_ids, batch.logit_request_ids)
    assert logit_batch.num_decode_tokens == (batch.logit_rows < batch.num_decode_tokens).sum()
    links_of_row = {rows.stop - 1: links for rows, _, links in spans_of(batch)}
    for row, (_, _, links) in zip(batch.logit_rows.tolist(), spans_of(logit_batch), strict=True):
        assert links == links_of_row[row]
        store.read_row(logit_batch, links, int(batch.positions[row]))


def check_shape_of(batch: ext.TokenBatch, page_size: int, max_batch_tokens: int | None) -> None:
    assert batch.num_tokens == batch.num_decode_tokens + batch.num_prefill_tokens
    if max_batch_tokens is not None:
        assert batch.num_tokens <= max_batch_tokens, "over the budget"
    assert batch.span_indptr[0] == 0
    assert batch.span_indptr[-1] == batch.num_tokens
    assert len(set(batch.logit_request_ids.tolist())) == len(batch.logit_request_ids)
    for rows, positions, links in spans_of(batch):
        assert len(rows) >= 1
        assert batch.positions[rows.start : rows.stop].tolist() == list(positions)
        assert len(set(links)) == len(links)
    num_pages = np.diff(batch.segment_page_indptr)
    assert np.array_equal(num_pages, -(-batch.segment_num_tokens // page_size)), "pages beyond the tokens"
    places: dict[int, tuple[int, int]] = {}  # of a page: where its segment begins, and which of its pages it is
    for segment, begin in enumerate(batch.segment_begin.tolist()):
        pages = batch.segment_page_ids[batch.segment_page_indptr[segment] : batch.segment_page_indptr[segment + 1]]
        for index, page in enumerate(pages.tolist()):
            assert places.setdefault(page, (begin, index)) == (begin, index), "a page has one owner"


def check_end(planner: ext.BatchPlanner, result: Replay) -> None:
    stats = planner.stats
    assert stats["used_pages"] == 0, "every page is free at the end"
    assert stats["running"] == stats["waiting"] == 0
    assert sorted(result.finish_order) == sorted(planner.order.tolist()), "every request is answered once"
    for request, output in result.outputs.items():
        assert planner.output_tokens(request).tolist() == output
    requests = np.array(list(result.outputs), np.int32)
    assert planner.outputs(requests) == [(result.outputs[i], planner.num_cached_tokens(i)) for i in requests.tolist()]
    num_rows = sum(batch.num_tokens for batch in result.batches)
    num_first_computed = stats["prompt_tokens"] - stats["cached_prompt_tokens"]
    num_decoded = stats["output_tokens"] - stats["finished"]  # the last token of a request is never an input
    assert num_rows == num_first_computed + num_decoded + stats["recomputed_tokens"]
    assert stats["steps"] == len(result.batches)
    assert stats["peak_pages"] <= stats["num_pages"]
