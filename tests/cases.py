"""Attention cases that tests and benchmarks share. NumPy only.

A `Case` is a small forest of token batches: each request is a chain of segments, each span some rows of one segment.
`make_inputs` lays the segments out in randomly ordered pages, fills everything that no row may read with `poison`
(NaN by default), and returns the arrays that `batchllm_ext.plan_attention` takes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np


@dataclass
class Segment:
    begin: int  # position of the first token
    num_tokens: int  # tokens stored


@dataclass
class Span:
    links: list[int]  # segment ids, root first
    begin: int  # position of the first row
    num_rows: int


@dataclass
class Inputs:
    """One batch: what the kernels take, and the logical K and V of every segment that the reference reads."""

    case: Case
    segments: list[Segment]
    spans: list[Span]
    q: np.ndarray  # [num_tokens, num_qo_heads, head_dim] float32
    k_pages: np.ndarray  # [num_pages, page_size, num_kv_heads, head_dim] float32
    v_pages: np.ndarray
    segment_k: list[np.ndarray]  # per segment [num_tokens, num_kv_heads, head_dim]
    segment_v: list[np.ndarray]
    sinks: np.ndarray | None
    arrays: dict[str, np.ndarray]  # keyword arguments of plan_attention

    @property
    def plan_arguments(self) -> dict:
        return self.arrays | self.case.plan_options

    @property
    def options(self) -> dict:
        """Keyword arguments of attention."""
        return {
            "softmax_scale": self.case.softmax_scale,
            "soft_cap": self.case.soft_cap,
            "sinks": self.sinks,
        }


@dataclass
class Case:
    name: str
    # A request: (lengths of its segments root first, own length, rows). Requests with an equal path of
    # (label, length) pairs share those segments.
    requests: list[Request]
    num_qo_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 64
    page_size: int = 16
    window_left: int = -1
    softmax_scale: float | None = None
    soft_cap: float = 0.0
    has_sinks: bool = False
    needle: str = ""  # "prefix", "own", "border": where the one key with a huge score is
    score_size: float = 1.0  # q is multiplied by it
    score_shift: float = 0.0  # every score is moved by it
    layout: str = "plain"  # "strided", "padded", "unaligned", "heads_first": the memory behind the pages

    def __str__(self) -> str:
        return self.name

    @property
    def plan_options(self) -> dict:
        names = ("num_qo_heads", "num_kv_heads", "head_dim", "page_size", "window_left")
        return {name: getattr(self, name) for name in names}

    def make_plan_arguments(self, seed: int = 0) -> dict:
        """Those of plan_attention, without K and V."""
        arrays, _ = self._make_arrays(np.random.default_rng(seed), *self._lay_out())
        return arrays | self.plan_options

    def make_inputs(self, seed: int = 0, poison: float = float("nan")) -> Inputs:
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        segments, spans = self._lay_out()
        arrays, num_pages = self._make_arrays(rng, segments, spans)

        num_tokens = sum(span.num_rows for span in spans)
        shape = (num_tokens, self.num_qo_heads, self.head_dim)
        q = (rng.standard_normal(shape) * self.score_size).astype(np.float32)
        segment_k, segment_v = [], []
        for segment in segments:
            kv_shape = (segment.num_tokens, self.num_kv_heads, self.head_dim)
            segment_k.append(rng.standard_normal(kv_shape).astype(np.float32))
            segment_v.append(rng.standard_normal(kv_shape).astype(np.float32))
        if self.score_shift:  # one dimension of q and k that only moves scores
            scale = self.softmax_scale or self.head_dim**-0.5
            q[..., 0] = np.sqrt(abs(self.score_shift) / scale)
            for k in segment_k:
                k[..., 0] = np.sign(self.score_shift) * np.sqrt(abs(self.score_shift) / scale)
        if self.needle:
            self._place_needles(q, segments, spans, segment_k)

        k_pages = self._make_pages(num_pages, poison)
        v_pages = self._make_pages(num_pages, poison)
        for index, segment in enumerate(segments):
            first = arrays["segment_page_indptr"][index]
            position = np.arange(segment.num_tokens)
            page_ids = arrays["segment_page_ids"][first + position // self.page_size]
            k_pages[page_ids, position % self.page_size] = segment_k[index]
            v_pages[page_ids, position % self.page_size] = segment_v[index]
        self._poison_unread(segments, spans, arrays, k_pages, v_pages, poison)
        sinks = rng.standard_normal(self.num_qo_heads).astype(np.float32) if self.has_sinks else None
        return Inputs(self, segments, spans, q, k_pages, v_pages, segment_k, segment_v, sinks, arrays)

    def _lay_out(self) -> tuple[list[Segment], list[Span]]:
        segments: list[Segment] = []
        spans: list[Span] = []
        shared: dict[tuple, int] = {}
        for request in self.requests:
            links: list[int] = []
            begin = 0
            for depth in range(len(request.path)):
                key = request.path[: depth + 1]
                if key not in shared:
                    shared[key] = len(segments)
                    segments.append(Segment(begin, key[-1][1]))
                links.append(shared[key])
                begin += key[-1][1]
            if request.own is not None:
                links.append(len(segments))
                segments.append(Segment(begin, request.own))
                begin += request.own
            last = begin if request.end is None else request.end
            spans.append(Span(links, last - request.rows, request.rows))
        return segments, spans

    def _make_arrays(self, rng, segments: list[Segment], spans: list[Span]) -> tuple[dict[str, np.ndarray], int]:
        def indptr(counts: list[int]) -> np.ndarray:
            return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)

        pages = [-(-segment.num_tokens // self.page_size) for segment in segments]
        num_pages = sum(pages) + 3  # some pages belong to nobody
        arrays = {
            "span_indptr": indptr([span.num_rows for span in spans]),
            "span_begin": np.array([span.begin for span in spans], np.int32),
            "link_indptr": indptr([len(span.links) for span in spans]),
            "link_segment": np.array([link for span in spans for link in span.links], np.int32),
            "segment_page_indptr": indptr(pages),
            "segment_page_ids": rng.permutation(num_pages)[: sum(pages)].astype(np.int32),
            "segment_begin": np.array([segment.begin for segment in segments], np.int32),
            "segment_num_tokens": np.array([segment.num_tokens for segment in segments], np.int32),
        }
        return arrays, num_pages

    def _make_pages(self, num_pages: int, poison: float) -> np.ndarray:
        shape = (num_pages, self.page_size, self.num_kv_heads, self.head_dim)
        if self.layout == "plain":
            return np.full(shape, poison, np.float32)
        if self.layout == "heads_first":  # [num_pages, num_kv_heads, page_size, head_dim] behind it
            return np.full((shape[0], shape[2], shape[1], shape[3]), poison, np.float32).transpose(0, 2, 1, 3)
        if self.layout == "strided":  # gaps behind every dimension
            memory = np.full(
                (num_pages, self.page_size + 1, self.num_kv_heads + 2, self.head_dim + 3), poison, np.float32
            )
            return memory[:, : self.page_size, : self.num_kv_heads, : self.head_dim]
        if self.layout == "padded":  # likewise, in multiples of 16 bytes of 16-bit elements
            memory = np.full(
                (num_pages, self.page_size + 1, self.num_kv_heads + 2, self.head_dim + 8), poison, np.float32
            )
            return memory[:, : self.page_size, : self.num_kv_heads, : self.head_dim]
        if self.layout == "unaligned":  # four bytes behind any vector's boundary
            return np.full(int(np.prod(shape)) + 1, poison, np.float32)[1:].reshape(shape)
        raise ValueError(f"layout: {self.layout}")

    def _poison_unread(self, segments, spans, arrays, k_pages, v_pages, poison: float) -> None:
        readable = [np.zeros(segment.num_tokens, bool) for segment in segments]
        for span in spans:
            for row in range(span.num_rows):
                for link, begin, end in visible_ranges(self, segments, span, row):
                    readable[link][begin - segments[link].begin : end - segments[link].begin] = True
        for index, mask in enumerate(readable):
            position = np.flatnonzero(~mask)
            page_ids = arrays["segment_page_ids"][arrays["segment_page_indptr"][index] + position // self.page_size]
            k_pages[page_ids, position % self.page_size] = poison
            v_pages[page_ids, position % self.page_size] = poison

    def _place_needles(self, q, segments, spans, segment_k) -> None:
        """One key whose score exceeds all others by far, for every row that sees it."""
        direction = np.zeros(self.head_dim, np.float32)
        direction[0] = 40.0
        q[..., 0] = 4.0
        for segment, k in zip(segments, segment_k, strict=True):
            is_root = segment.begin == 0
            if segment.num_tokens == 0:
                continue
            if self.needle == "border":
                k[-1 if is_root else 0] = direction
            elif (self.needle == "prefix") == is_root:
                k[segment.num_tokens // 2] = direction


@dataclass(frozen=True)
class Request:
    path: tuple[tuple[str, int], ...]  # shared segments root first: (label, number of tokens)
    own: int | None  # tokens of its own segment, new rows included; None: it has none
    rows: int = 1  # rows of this step, the last ones of what it sees
    end: int | None = None  # one behind the position of the last row, if that is not the end of the chain


def visible_ranges(case: Case, segments: list[Segment], span: Span, row: int):
    """(segment, begin, end) in positions, for all that this row sees."""
    position = span.begin + row
    first = 0 if case.window_left < 0 else max(0, position - case.window_left)
    for index, link in enumerate(span.links):
        segment = segments[link]
        end = segment.begin + segment.num_tokens
        if index + 1 < len(span.links):
            end = segments[span.links[index + 1]].begin
        begin, end = max(segment.begin, first), min(end, position + 1)
        if begin < end:
            yield link, begin, end


def prefix(length: int, label: str = "a") -> tuple[tuple[str, int], ...]:
    return ((label, length),)


def decodes(path, owns: list[int], rows: int = 1) -> list[Request]:
    return [Request(path, own, rows) for own in owns]


def heads(group_size: int, num_kv_heads: int = 2) -> dict[str, int]:
    return {"num_qo_heads": group_size * num_kv_heads, "num_kv_heads": num_kv_heads}


def attention_cases() -> list[Case]:
    cases: list[Case] = []

    def add(name: str, requests: list[Request], **options) -> None:
        cases.append(Case(name, requests, **options))

    # Shapes of the forest.
    add("empty_batch", [])
    add("no_groups", decodes((), [1, 7, 64, 65, 130]))
    add("group_of_one", decodes(prefix(50), [9]))
    add("prefix_decode", decodes(prefix(200), [1, 2, 17, 40, 64]))
    add("own_length_0", [Request(prefix(70), None), Request(prefix(70), None), Request(prefix(70), 3)])
    add("own_segment_without_tokens", [Request(prefix(70), 0), Request(prefix(70), 0), Request(prefix(70), 5)])
    add("prefix_length_0", decodes(prefix(0), [5, 6, 7]))
    add("rows_that_see_nothing", [Request((), 0, 1, 1), Request(prefix(30), 4), Request((), None, 2, 2)])
    add("span_without_rows", [Request(prefix(33), 4, 0), Request(prefix(33), 5), Request(prefix(33), 6)])
    add(
        "two_groups",
        decodes(prefix(100), [3, 4, 5]) + decodes(prefix(90, "b"), [6, 7, 8]) + decodes((), [20]),
    )
    tree = (("system", 40), ("tools", 30), ("document", 90), ("turn", 25))
    add("tree", [Request(tree[:depth], 3 + depth + i) for depth in range(5) for i in range(3)])
    add("leave_segment_early", [Request(prefix(64), 5), Request(prefix(64), 6), Request(prefix(64), 9, 1, 30)])
    add("prefill", [Request((), 150, 150)])
    add("prefill_chunk", [Request((), 200, 90)])
    add(
        "prefill_chunks_of_a_prefix_and_its_readers",
        [Request(prefix(160), None, 100), *decodes(prefix(160), [1, 5, 9]), Request(prefix(160), 70, 70)],
    )
    add(
        "rows_inside_the_prefix",
        [Request(prefix(130), None, 20, 60), Request(prefix(130), None, 30, 130), Request(prefix(130), 8, 3)],
    )
    add(
        "decodes_and_prefills_mixed",
        [*decodes(prefix(120), [4, 30]), Request(prefix(120), 80, 33), Request((), 90, 45), Request((), 3, 1)],
    )
    add("many_readers", decodes(prefix(96), [1 + i % 7 for i in range(150)]))
    add("long_prefix_one_kv_head", decodes(prefix(1500), [3, 300]), **heads(8, 1))

    # Sizes on both sides of every edge.
    for page_size in (1, 2, 16, 64):
        add(
            f"page_size_{page_size}",
            [*decodes(prefix(77), [1, 16, 33]), Request(prefix(64, "b"), 20, 20)],
            page_size=page_size,
        )
    for group_size in (1, 2, 3, 4, 5, 6, 7, 8, 16):
        add(
            f"group_size_{group_size}",
            [*decodes(prefix(70), [1, 20, 65]), Request(prefix(70), 30, 5)],
            **heads(group_size),
        )
    for head_dim in (1, 7, 33, 64, 80, 96, 112, 128, 192, 256):
        add(
            f"head_dim_{head_dim}",
            [*decodes(prefix(70), [1, 20, 65]), Request(prefix(70), 30, 19)],
            head_dim=head_dim,
            **heads(3),
        )
    for num_rows in (
        1,
        2,
        3,
        4,
        7,
        8,
        9,
        15,
        16,
        17,
        23,
        24,
        25,
        31,
        32,
        33,
        47,
        48,
        49,
        64,
        65,
        255,
        256,
        257,
    ):
        add(f"rows_{num_rows}", [Request((), max(num_rows, 70), num_rows)], **heads(1, 1))
    for length in (1, 3, 4, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129):
        add(
            f"prefix_{length}",
            decodes(prefix(length), [1] * 9) + decodes(prefix(length, "b"), [2, 3]),
            **heads(2),
        )
    add("many_heads", decodes(prefix(40), [3, 5]), **heads(1, 96), head_dim=32)
    add("wide_group", decodes(prefix(40), [3, 5]), **heads(300, 1), head_dim=32)

    # Masks and score functions.
    for window in (0, 1, 15, 40, 100, 1000):
        add(
            f"window_{window}",
            [*decodes(prefix(90), [1, 20, 60]), Request(prefix(90), 50, 50), Request((), 150, 120)],
            window_left=window,
        )
    add(
        "window_with_gap",
        [
            Request(prefix(300), None, 1, 20),
            Request(prefix(300), None, 1, 200),
            Request(prefix(300), None, 3, 300),
        ],
        window_left=10,
    )
    for readers in (1, 10):  # rows that see nothing of their item's first tile of keys: narrow and wide
        ends = [141, 241] * readers
        add(
            f"window_behind_the_first_tile_{readers}",
            [Request(prefix(300), None, 1, end) for end in ends],
            window_left=100,
            **heads(1),
        )
    add(
        "soft_cap",
        [*decodes(prefix(90), [1, 20, 60]), Request(prefix(90), 30, 30)],
        soft_cap=5.0,
        score_size=6.0,
    )
    add("soft_cap_and_window", decodes(prefix(90), [1, 20]), soft_cap=30.0, window_left=25, score_size=6.0)
    add(
        "sinks",
        [*decodes(prefix(90), [1, 20, 60]), Request((), 30, 30), Request((), 0, 1, 1)],
        has_sinks=True,
    )
    add("sinks_window_soft_cap", decodes(prefix(90), [1, 20]), has_sinks=True, window_left=10, soft_cap=20.0)
    add("softmax_scale", decodes(prefix(90), [1, 20]), softmax_scale=0.7)

    # Scores.
    for where in ("prefix", "own", "border"):
        add(
            f"needle_{where}",
            [*decodes(prefix(100), [9, 20, 70]), Request(prefix(100), 30, 12)],
            needle=where,
        )
    add("scores_far_below_zero", [*decodes(prefix(90), [5, 20, 60]), Request((), 40, 40)], score_shift=-1e5)
    add("scores_far_above_zero", [*decodes(prefix(90), [5, 20, 60]), Request((), 40, 40)], score_shift=1e5)
    add("scores_of_great_size", [*decodes(prefix(90), [5, 20, 60]), Request((), 40, 40)], score_size=300.0)

    # Memory.
    for layout in ("strided", "padded", "unaligned", "heads_first"):
        add(f"layout_{layout}", [*decodes(prefix(90), [5, 20]), Request(prefix(90), 30, 30)], layout=layout)
        add(
            f"layout_{layout}_head_dim_80",
            [*decodes(prefix(90), [5, 20]), Request((), 30, 30)],
            layout=layout,
            head_dim=80,
        )
    return cases


ATTENTION_CASES = attention_cases()


def random_case(seed: int) -> Case:
    """A forest nobody thought of."""
    rng = np.random.default_rng(seed)
    paths = [()]
    for label in range(int(rng.integers(1, 8))):
        parent = paths[rng.integers(len(paths))]
        paths.append((*parent, (str(label), int(rng.integers(0, 150)))))
    requests = []
    for _ in range(int(rng.integers(1, 30))):
        path = paths[rng.integers(len(paths))]
        own = int(rng.integers(1, 100))
        requests.append(Request(path, own, int(rng.integers(1, own + 1)) if rng.random() < 0.3 else 1))
    return Case(
        f"random_{seed}",
        requests,
        **heads(int(rng.integers(1, 9)), int(rng.integers(1, 4))),
        head_dim=int(rng.choice([16, 40, 64, 128])),
        page_size=int(rng.choice([1, 2, 4, 16, 64])),
        window_left=int(rng.choice([-1, -1, 5, 60])),
        soft_cap=float(rng.choice([0.0, 0.0, 10.0])),
        has_sinks=bool(rng.random() < 0.3),
    )
