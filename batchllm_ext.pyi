"""BatchLLM's planner and attention kernels. Needs only NumPy; tensors cross the boundary by DLPack.

Arrays may come from NumPy, torch, array.array, memoryview, or anything else with the buffer protocol or `__dlpack__`.
Index arguments are one-dimensional, contiguous int32 arrays on the CPU unless another dtype is named; index results are
read-only NumPy arrays. Tensors are float32 or bfloat16, and the stride of their last dimension is 1. An argument that
is not an array (a list, None) or has other elements is a TypeError, any other wrong argument a ValueError. Both name
the argument, what was expected and what was found.

Threads: num_threads 0 is OpenMP's number (OMP_NUM_THREADS) unless stated otherwise; over 1,024 is a ValueError. No more
threads are started than the work has parts or the machine has processors (16 are always allowed), which changes no
result. Objects may be used from several Python threads: immutable ones concurrently, a BatchPlanner one call at a time.
Long calls release the GIL; do not change the arrays of a call while it runs. In a process forked after the import, a
call that needs OpenMP's threads, and every use of an existing BatchPlanner, is a RuntimeError: start processes by
"spawn".

Tensors are on the CPU. If has_cuda(), append_kv, merge_state, merge_states, rms_norm, rotate, silu_and_mul and
sample also take CUDA tensors, and norm_rotate_append takes only those, all on one device. The work is queued on
`stream`, a cudaStream_t as int (torch.cuda.current_stream().cuda_stream), on which the tensors must be ready, and the
call returns before it is done.
"""

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]

class PrefixTrie:
    """Every prefix that two prompts share, exact to the token.

    Nodes are numbered in preorder from the root, node 0. Each has at least two readers. Requests are ranked
    depth-first: the readers of a node are the ranks [request_begin, request_end).
    """

    def __init__(
        self,
        tokens: Any,
        indptr: Any,
        *,
        drop_last: int = 0,
        num_threads: int = 0,
        prompt_of_request: Any = None,
    ) -> None:
        """Prompt i is tokens[indptr[i] : max(indptr[i], indptr[i + 1] - drop_last)], and belongs to request i.

        tokens: int32 [num_tokens], kept alive, not copied. indptr: int64 or int32 [num_prompts + 1].
        num_threads: 0 is one per core.
        prompt_of_request: int32 [num_requests], each request's prompt, if several requests (samples) share one.
        """

    @property
    def num_requests(self) -> int: ...
    @property
    def num_nodes(self) -> int: ...
    @property
    def num_tokens(self) -> int:
        """Distinct prefixes: the tokens left when everything shared is stored once."""

    @property
    def order(self) -> Int32Array:
        """[num_requests] rank -> request id."""

    @property
    def parent(self) -> Int32Array:
        """[num_nodes]; -1 at the root."""

    @property
    def token_begin(self) -> Int32Array:
        """[num_nodes] position of the node's first token."""

    @property
    def token_end(self) -> Int32Array:
        """[num_nodes] position after its last token."""

    @property
    def request_begin(self) -> Int32Array: ...
    @property
    def request_end(self) -> Int32Array: ...
    def audit(self) -> None:
        """Recomputes everything from the prompts. Raises RuntimeError on a mismatch."""

class Segments:
    """Runs of prompt tokens whose KV is stored once. A request reads the chain that ends at its request_segment."""

    def __init__(
        self,
        parent: Any,
        token_begin: Any,
        token_end: Any,
        owner_request: Any,
        request_segment: Any,
        *,
        prompt_tokens: int = 0,
    ) -> None:
        """From arrays: parent, token_begin, token_end, owner_request [num_segments]; request_segment [num_requests]."""

    @property
    def num_segments(self) -> int: ...
    @property
    def num_requests(self) -> int: ...
    @property
    def parent(self) -> Int32Array:
        """[num_segments]; -1 at the top. Parents precede children."""

    @property
    def token_begin(self) -> Int32Array: ...
    @property
    def token_end(self) -> Int32Array: ...
    @property
    def owner_request(self) -> Int32Array:
        """[num_segments] a request whose prompt holds the tokens."""

    @property
    def num_readers(self) -> Int32Array: ...
    @property
    def request_segment(self) -> Int32Array:
        """[num_requests] the deepest segment of each request, by request id; -1 for none."""

    @property
    def saved_tokens(self) -> int:
        """Prompt tokens that need not be computed, compared with no sharing."""

    @property
    def prompt_tokens(self) -> int: ...

def choose_segments(
    trie: PrefixTrie,
    levels: int | None = None,
    *,
    method: Literal["exact", "paper"] = "exact",
    reader_cost: float = 0.0,
) -> Segments:
    """Chooses the nodes of the trie that become segments, so that the most prompt tokens need not be computed.

    levels: None any depth, 1 a single level, 0 none.
    method: "exact" is the optimum; "paper" is the bottom-up pass of BatchLLM (MLSys 2026), a single level.
    reader_cost: tokens that one more segment costs each of its readers, part of the objective; LLM uses 2.
    """

class TokenBatch:
    """One forward pass. A span is consecutive rows of one segment; decodes come first.

    A row at position p sees, in each segment its span links to, the positions from segment_begin up to
    min(segment_begin + segment_num_tokens, p + 1).
    """

    @property
    def num_tokens(self) -> int: ...
    @property
    def num_spans(self) -> int: ...
    @property
    def num_decode_tokens(self) -> int: ...
    @property
    def num_prefill_tokens(self) -> int: ...
    def write_rows(self, *, slots: Any, token_ids: Any, positions: Any) -> None:
        """Into arrays for a device, int64, int32 and int32 [num_rows], of at least num_tokens elements: behind the
        batch's rows stand -1, 0 and 0. In the place of a token that is not told yet stands ~i: logit row i of the batch
        before samples it."""

    def logit_batch(self) -> TokenBatch:
        """The output_rows as a batch over the same segments, one span each: the work left once the last layer's K and V
        are written."""

    @property
    def token_ids(self) -> Int32Array:
        """[num_tokens]"""

    @property
    def positions(self) -> Int32Array:
        """[num_tokens]"""

    @property
    def slots(self) -> Int64Array:
        """[num_tokens] page_id * page_size + offset: where the row's K and V are written."""

    @property
    def untold_rows(self) -> Int32Array:
        """[num_untold] rows whose token, -1 in token_ids, is not known yet (BatchPlanner.advance)."""

    @property
    def untold_logits(self) -> Int32Array:
        """[num_untold] the logit row of the batch before that samples it."""

    @property
    def logit_rows(self) -> Int32Array:
        """[num_logits] rows that sample a token, in ascending order; each is the last of its span."""

    @property
    def logit_request_ids(self) -> Int32Array:
        """[num_logits] the request each samples for."""

    @property
    def scored_rows(self) -> Int32Array:
        """[num_scored_rows] rows that predict prompt tokens whose log-probabilities are wanted (add_requests'
        score_begin), in ascending order. A row of a shared segment predicts a different next token for each reader."""

    @property
    def scores_indptr(self) -> Int32Array:
        """[num_scored_rows + 1] scores of each scored row."""

    @property
    def score_request_ids(self) -> Int32Array:
        """[num_scores] the request that asks."""

    @property
    def score_token_ids(self) -> Int32Array:
        """[num_scores] its prompt token at the position after the row's."""

    @property
    def output_rows(self) -> Int32Array:
        """Rows whose logits are needed: those of logit_rows and scored_rows, in ascending order."""

    @property
    def span_indptr(self) -> Int32Array:
        """[num_spans + 1] rows of a span."""

    @property
    def span_begin(self) -> Int32Array:
        """[num_spans] position of a span's first row."""

    @property
    def link_indptr(self) -> Int32Array:
        """[num_spans + 1] links of a span, into link_segment."""

    @property
    def link_segment(self) -> Int32Array:
        """[num_links] segments of the batch, root first, the span's own last."""

    @property
    def segment_page_indptr(self) -> Int32Array:
        """[num_segments + 1] pages of a segment, into segment_page_ids."""

    @property
    def segment_page_ids(self) -> Int32Array: ...
    @property
    def segment_begin(self) -> Int32Array:
        """[num_segments] position of the segment's first token."""

    @property
    def segment_num_tokens(self) -> Int32Array:
        """[num_segments] tokens stored after this batch's K and V are appended."""

class BatchPlanner:
    """Turns a job into token batches: next_batch(), run the model, commit(), until next_batch() returns None.

    Other threads may add requests and read meanwhile: each call waits for the one before it.
    """

    @overload
    def __init__(
        self,
        tokens: Any,
        indptr: Any,
        segments: Segments,
        *,
        max_output_tokens: Any,
        num_pages: int,
        page_size: int = 16,
        max_batch_tokens: int = 1024,
        expected_output_tokens: Any = None,
        order: Literal["decode_first", "arrival", "blend"] = "decode_first",
        max_running_requests: int | None = None,
        window_left: int = -1,
    ) -> None:
        """The pool, the size of a step, and the first requests, as for add_requests().

        order: of groups, always depth-first: "decode_first" by descending ratio of expected output
        to prefill tokens (the paper), "arrival" by the smallest request id, "blend" from both ends of the ratio
        (BlendServe, arXiv 2411.16102). max_running_requests: None leaves the bound to KV memory. window_left: how
        many positions before its own a row sees in the layer that sees most, or -1 for all; what no later row sees is
        dropped.
        """

    @overload
    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int = 16,
        max_batch_tokens: int = 1024,
        order: Literal["decode_first", "arrival", "blend"] = "decode_first",
        max_running_requests: int | None = None,
        first_request_id: int = 0,
        window_left: int = -1,
    ) -> None:
        """Without requests yet; ids will start at first_request_id."""

    def add_requests(
        self,
        tokens: Any,
        indptr: Any,
        segments: Segments,
        *,
        max_output_tokens: Any,
        expected_output_tokens: Any = None,
        reader_cost: float = 0.0,
        prompt_of_request: Any = None,
        score_begin: Any = None,
    ) -> int:
        """Adds requests, before or while others run; they start after the existing ones. Returns the first id; ids are
        never reused.

        tokens, indptr: the whole prompts, int32, kept alive until all these requests have ended, and int64 or int32.
        prompt_of_request: as for PrefixTrie.
        max_output_tokens: int32 [num_requests], at least 1 each.
        score_begin: int32 [num_requests], at least 1 each: the position of the first prompt token whose
            log-probability is wanted; the prompt's length or more for none. Such prompts do not borrow.
        expected_output_tokens: int32 [num_requests], 0 if unknown; then it is learned from the group and the job.

        Prefixes that unfinished requests hold in the pool when an added one starts are borrowed, not computed, if that
        saves more than reader_cost tokens per reader. An empty prompt, one that segments cover to its last token, or
        one that differs from its segments' tokens is a ValueError that names the request; then nothing is added.
        """

    def abort(self, request_ids: Any) -> None:
        """Ends requests (int32 ids) in any state; ended ones are left as they are.

        Raises RuntimeError while a batch is in flight, IndexError for an id that was never given or is forgotten.
        """

    def forget(self, request_ids: Any) -> None:
        """Drops what is kept of requests (int32 ids) that finished, were aborted or refused; their ids are then
        invalid. Raises ValueError if one still runs or waits, IndexError like abort()."""

    @property
    def refused(self) -> list[tuple[int, str]]:
        """Requests that can never fit the pool, with the reason, until they are forgotten. They are not scheduled."""

    @property
    def order(self) -> Int32Array:
        """Request ids, first to start first."""

    def num_cached_tokens(self, request_id: int) -> int:
        """Prompt tokens that other requests computed, 0 before it starts; a segment is charged to its first reader."""

    @property
    def stats(self) -> dict[str, int]:
        """num_requests, prompt_tokens, cached_prompt_tokens, borrowed_prompt_tokens (of segments of added requests),
        computed_prompt_tokens, recomputed_prompt_tokens, recomputed_tokens (with generated ones), output_tokens,
        steps, preemptions, num_pages, used_pages, peak_pages, running, waiting, finished, aborted.
        """

    def next_batch(self) -> TokenBatch | None:
        """None once every request is answered."""

    def advance(self) -> None:
        """Lets the next batch be planned before commit() delivers the tokens of the one in flight. The next batch runs
        after it, and its untold_rows say where the device finds their tokens. Requests that reach their
        max_output_tokens end here, but commit() still returns them. Raises RuntimeError if no batch is in flight, or if
        the tokens of the one before have not been committed.
        """

    def commit(self, sampled: Any, finished: Any = None) -> Int32Array:
        """Appends the sampled tokens of the oldest uncommitted batch. Returns the requests that finished.

        sampled: int32 [num_logits], for the batch's logit_request_ids; dropped for requests that were aborted or
            forgotten since next_batch(), or that finished in the batch before.
        finished: bool [num_logits]; a request also finishes at its max_output_tokens.
        """

    def output_tokens(self, request_id: int) -> Int32Array:
        """The committed tokens."""

    def outputs(self, request_ids: Any) -> list[tuple[list[int], int]]:
        """The output_tokens and num_cached_tokens of each request, int32 [R]."""

    def audit(self) -> None:
        """Recomputes every count, range and page owner. Raises RuntimeError on a mismatch."""

    @staticmethod
    def most_segment_pages(*, page_size: int = 16, max_batch_tokens: int = 1024, window_left: int = -1) -> int | None:
        """The most pages that one segment, a request's own part or a shared one, holds at a time, however long it is.
        None without a window: it then holds the pages of all its tokens."""

def simulate_lru(
    tokens: Any,
    indptr: Any,
    output_tokens: Any,
    max_output_tokens: Any,
    *,
    kv_tokens: int,
    page_size: int = 16,
    max_batch_tokens: int = 2048,
    max_num_seqs: int = 256,
    is_sorted: bool = False,
    windows: Sequence[int] = (-1,),
) -> dict[str, Any]:
    """First come, first served over hashed KV blocks with LRU eviction, like vLLM.

    tokens, indptr: as for PrefixTrie.
    output_tokens, max_output_tokens: int32 [num_requests]; an output takes one step per token, at most 2^24.
    windows: of the model's layers, the window_left of each kind, -1 for one that sees all. K/V that no layer sees any
    more is dropped.

    Returns the fields of batchllm.estimate.simulate.Simulation by name, except policy and windows.
    """

def simulate_radix(
    tokens: Any,
    indptr: Any,
    output_tokens: Any,
    max_output_tokens: Any,
    *,
    kv_tokens: int,
    page_size: int = 16,
    max_batch_tokens: int = 2048,
    max_running_requests: int = 2048,
    order: Literal["lpm", "dfs"] = "lpm",
    windows: Sequence[int] = (-1,),
) -> dict[str, Any]:
    """A radix cache with LRU eviction of leaves, like SGLang. page_size only decides what fits at all; windows save
    attention, not memory."""

def simulate_planned(
    tokens: Any,
    indptr: Any,
    output_tokens: Any,
    max_output_tokens: Any,
    segments: Segments,
    *,
    kv_tokens: int,
    page_size: int = 16,
    max_batch_tokens: int = 2048,
    lengths: Literal["known", "learned", "bound"] = "known",
    order: Literal["decode_first", "arrival", "blend"] = "decode_first",
    max_running_requests: int | None = None,
    windows: Sequence[int] = (-1,),
) -> dict[str, Any]:
    """BatchPlanner itself, with the output lengths of the job."""

class AttentionPlan:
    """The attention of a token batch as work items; serves every layer with the same heads."""

    @property
    def num_items(self) -> int: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def num_partial_rows(self) -> int:
        """Partial states per query head that are merged at the end."""

    @property
    def num_threads(self) -> int: ...
    @property
    def buffers(self) -> dict[str, Int32Array]:
        """The plan in the form that kernels read, as views: the structs of csrc/attention/plan/work_item.h, one per
        row.

        items [num_items, 6], rows [num_item_rows, 4], pieces [num_pieces, 4], page_ids [num_segment_pages],
        merge_rows [num_merged_rows, 3].
        """

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that a PlanLayout must have room for: num_rows, num_wide_tiles, num_narrow_tiles, num_item_rows,
        num_pieces, num_page_ids, num_merged_rows, num_partial_rows."""

    def for_rows(self, rows: Any) -> AttentionPlan:
        """The plan for some of its rows: the same work without the other rows, in a fraction of the time of a new plan.

        rows: int32 [num_rows], ascending; row i of q and out is rows[i] of this plan's. Raises ValueError for rows that
        are not the plan's, or not in order.
        """

    def explain(self, *, kv_dtype: Literal["float32", "bfloat16"] = "float32") -> dict[str, Any]:
        """Items, bytes and FLOPs of one layer, and the bytes if every request read its keys separately;
        "predicted_seconds" has those of predict_seconds() for every GPU of gpu_peaks(). str(plan) shows the predictions
        as a table.
        """

    def predict_seconds(
        self, *, flops_per_s: float, bytes_per_s: float, launch_s: float = 2e-6, device: str = ""
    ) -> dict[str, float]:
        """Seconds of one layer in bfloat16 on a GPU with these peaks: a model, not a measurement. Other properties come
        from `device`, one of gpu_models(); "" is the plan's device, or "a100" for a CPU plan. Raises ValueError for
        peaks that are not positive, and for other devices.

        A launch takes launch_s plus the longest of three times: its bytes at bytes_per_s, its blocks' times over all
        places for blocks, and the rounds in which they run. By these formulas, it returns:

        plan: the launches of this plan's wide and narrow tiles (side by side if the GPU can), and their merge. Rows of
            q and partial states (out in bfloat16, lse in float32) count as often as they are read or written.
        per_request: a plan for this GPU in which every request reads its keys separately.
        cascade: a launch for each level of the longest chain, planned for this GPU like ours, a merge if a level is
            split, and between levels a launch that merges two states, which are like ours.
        cascade_float32: the same with states in float32.
        """

class PlanLayout:
    """Room for plans in one int32 buffer that a GPU reads. The offsets of a plan's arrays depend only on the layout,
    and smaller plans are padded with no-ops, so a CUDA graph can be replayed with another plan.
    """

    def __init__(self, plan: AttentionPlan, num_pages: int, **kwargs: int) -> None:
        """For plans with the heads of `plan`, with room for it and for the sizes in kwargs, named as in
        AttentionPlan.sizes. num_pages: of k_pages and v_pages. Raises ValueError for a head_dim outside
        gpu_head_dims().
        """

    @property
    def sizes(self) -> dict[str, int]: ...
    @property
    def num_ints(self) -> int:
        """int32 elements of the buffer."""

    @property
    def num_workspace_floats(self) -> int:
        """float32 elements of the memory for partial states."""

    def has_room_for(self, plan: AttentionPlan) -> bool: ...
    def pack(self, plan: AttentionPlan, buffer: Any) -> None:
        """Writes the plan into buffer, int32 [num_ints] in host memory. Raises ValueError, naming the size or the page
        id, for a plan that does not fit."""

class DevicePlan:
    """A packed plan in a GPU's memory, for attention() on CUDA tensors. Keeps both tensors alive."""

    def __init__(self, layout: PlanLayout, buffer: Any, workspace: Any) -> None:
        """buffer: int32 [layout.num_ints], a copy of what layout.pack() wrote, made on attention()'s stream or before.
        workspace: float32, at least layout.num_workspace_floats elements, for one call at a time. Both on one GPU.
        """

def gpu_peaks() -> dict[str, dict[str, float]]:
    """For each GPU flops_per_s (dense bfloat16), bytes_per_s and launch_s, from NVIDIA's data sheets; launch_s
    assumed."""

def gpu_models() -> dict[str, dict[str, Any]]:
    """The GPUs of plans and predictions, by the device of plan_attention. From data sheets: name,
    num_multiprocessors, flops_per_s (dense bfloat16), bytes_per_s, memory_bytes, l2_bytes, shared_bytes (of a
    multiprocessor), begins_early (launches may overlap). Assumed: launch_s (between two kernels in a graph),
    multiprocessor_bytes_per_s (what one loads from the L2 cache), block_s (of a block apart from its keys)."""

def nearest_gpu(name: str, capability: int) -> str:
    """The device of gpu_models() that is most like a GPU: by its name in the driver, otherwise by its major compute
    capability."""

@overload
def plan_attention(
    batch: TokenBatch,
    *,
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    num_threads: int = 0,
    share: bool | Literal["always"] = True,
    window_left: int = -1,
    device: Literal["cpu", "cuda", "a100", "h100", "h200"] = "cpu",
) -> AttentionPlan: ...
@overload
def plan_attention(
    span_indptr: Any,
    span_begin: Any,
    link_indptr: Any,
    link_segment: Any,
    segment_page_indptr: Any,
    segment_page_ids: Any,
    segment_begin: Any,
    segment_num_tokens: Any,
    *,
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    num_threads: int = 0,
    share: bool | Literal["always"] = True,
    window_left: int = -1,
    device: Literal["cpu", "cuda", "a100", "h100", "h200"] = "cpu",
) -> AttentionPlan:
    """Plans the attention of one token batch, given whole or as its arrays.

    share: True if the cost model says that it pays, "always" without asking it, False request by request.
    num_threads: to balance the work for: threads (0 is OpenMP's number) or a GPU's multiprocessors (0 is the device's
        number); at most 1,024.
    window_left: positions before its own that a row sees; -1: all.
    device: whose kernels the work is cut for: the CPU's, or those of a GPU in gpu_models(), on which the plan is
        predicted to take the least time; "cuda" is "a100". The kernels of any device can execute the plan.

    Bounds: positions below 2^31 - 1, 2^24 rows, 2^26 pairs of a row and a link of its span, 1,024 heads of at most
    8,192 elements; ValueError beyond.
    """

def attention(
    plan: AttentionPlan | DevicePlan,
    q: Any,
    k_pages: Any,
    v_pages: Any,
    *,
    out: Any = None,
    lse: Any | bool | None = True,
    softmax_scale: float | None = None,
    soft_cap: float = 0.0,
    sinks: Any = None,
    dtype: str | None = None,
    num_threads: int = 0,
    stream: int = 0,
) -> tuple[Any, Any]:
    """Attention of one layer; returns (out, lse).

    q, out: [num_tokens, num_qo_heads, head_dim].
    k_pages, v_pages: [num_pages, page_size, num_kv_heads, head_dim].
    lse: float32 [num_tokens, num_qo_heads], natural log; -inf if a row sees nothing. True makes one; None skips it.
    softmax_scale: by default 1 / sqrt(head_dim).
    soft_cap: cap * tanh(score / cap), before the mask; 0 is off.
    sinks: float32 [num_qo_heads], scores of an extra key with v = 0.
    dtype: "bfloat16" if NumPy uint16 arrays hold it.

    Missing outputs are made by q's library, or by NumPy if q is JAX's and float32.

    With a DevicePlan all tensors are CUDA tensors in bfloat16 or float16, whose addresses and strides are multiples of
    16 bytes. num_tokens is the layout's num_rows, and rows outside the plan are not written. The work is queued on
    `stream`, a cudaStream_t, and nothing waits for it: a CUDA graph may capture the call if out and lse are given.
    """

def attention_ref(
    span_indptr: Any,
    span_begin: Any,
    link_indptr: Any,
    link_segment: Any,
    segment_page_indptr: Any,
    segment_page_ids: Any,
    segment_begin: Any,
    segment_num_tokens: Any,
    q: Any,
    k_pages: Any,
    v_pages: Any,
    *,
    out: Any = None,
    lse: Any | bool | None = True,
    softmax_scale: float | None = None,
    soft_cap: float = 0.0,
    sinks: Any = None,
    dtype: str | None = None,
    window_left: int = -1,
) -> tuple[Any, Any]:
    """`attention` in float64 with plain loops, without a plan."""

def merge_state(
    out_a: Any, lse_a: Any, out_b: Any, lse_b: Any, *, lse_base: Literal["e", "2"] = "e", stream: int = 0
) -> tuple[Any, Any]:
    """Merges the attention over two disjoint sets of keys; returns (out, lse).

    out: [num_tokens, num_heads, head_dim]. lse: float32 [num_tokens, num_heads]; -inf or +inf for an empty set, whose
    `out` may hold anything.
    """

def merge_states(out: Any, lse: Any, *, lse_base: Literal["e", "2"] = "e", stream: int = 0) -> tuple[Any, Any]:
    """The same over dimension 1 of out [num_tokens, num_states, num_heads, head_dim] and lse [..., num_heads]."""

def append_kv(k: Any, v: Any, slots: Any, k_pages: Any, v_pages: Any, *, num_threads: int = 0, stream: int = 0) -> None:
    """Writes k, v [num_tokens, num_kv_heads, head_dim] to slots, int64 [num_tokens]: page_id * page_size + offset.

    On a GPU a slot outside the pages is not an error, because the call would have to wait for the device: its row is
    not written.
    """

def rms_norm(
    x: Any, weight: Any, *, eps: float, out: Any, delta: Any | None = None, num_threads: int = 0, stream: int = 0
) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight over the last dimension; out may be x. With delta, x += delta before.

    x, out, delta [num_rows, size] or [num_rows, num_heads, size], weight [size]; all float32 or all bfloat16, on a
    GPU also all float16. The sum is rounded to x's type; everything else is float32, rounded once.
    """

def rotate(x: Any, cos: Any, sin: Any, *, num_threads: int = 0, stream: int = 0) -> None:
    """Rotary embedding in place, pairing element i with i + size / 2; in float32, rounded once.

    x [num_rows, num_heads, size] float32 or bfloat16, on a GPU also float16; cos, sin [num_rows, size / 2] float32.
    """

def norm_rotate_append(
    qkv: Any,
    cos: Any,
    sin: Any,
    slots: Any,
    k_pages: Any,
    v_pages: Any,
    *,
    q_norm: Any = None,
    k_norm: Any = None,
    eps: float = 0.0,
    stream: int = 0,
) -> None:
    """Does in one GPU launch what rms_norm (if there are weights), rotate and append_kv do in turn: q is normed and
    rotated in place, k_pages[slot] becomes the normed and rotated k, v_pages[slot] becomes v. k and v are unchanged,
    and nothing is written for a row whose slot is outside the pages.

    qkv [num_rows, num_qo_heads + 2 num_kv_heads, size]: q, k, v, bfloat16 or float16, size a multiple of 16 and at most
    256; cos, sin [num_rows, size / 2] float32; slots int64 [num_rows]; k_pages, v_pages [num_pages, page_size,
    num_kv_heads, size] and q_norm, k_norm [size] of qkv's type. Memory and strides are multiples of 16 bytes.
    """

def silu_and_mul(gate_up: Any, *, out: Any, num_threads: int = 0, stream: int = 0) -> None:
    """out = gate / (1 + exp(-gate)) * up; in float32, rounded once.

    gate_up [num_rows, 2 size]: gate, then up; out [num_rows, size]; both float32 or both bfloat16, on a GPU also
    both float16.
    """

def quantize_rows(x: Any, *, out: Any, scales: Any, num_segments: int = 1, num_threads: int = 0) -> None:
    """Quantises rows to 8 bits: an element represents scales[row] * (out - 128). A row's scale is its largest magnitude
    / 127 (NaN if an element is NaN), and elements are rounded to nearest. With more than one segment, quantises H(x):
    the orthogonal Hadamard transform over num_segments (a power of two that divides size) equal segments of a row.

    x [num_rows, size] float32 or bfloat16; written: out uint8 [num_rows, size], scales float32 [num_rows].
    """

def dequantize_rows(x: Any, scales: Any, *, out: Any, bias: Any | None = None, num_threads: int = 0) -> None:
    """out = scales[row] * x + bias, rounded once; out may be x.

    x float32 [num_rows, size], products of quantized rows; scales float32 [num_rows]; bias float32 [size]; out
    [num_rows, size] float32 or bfloat16.
    """

def norm_quantize(
    x: Any,
    *,
    eps: float,
    out: Any,
    scales: Any,
    delta: Any | None = None,
    delta_scales: Any | None = None,
    delta_bias: Any | None = None,
    num_threads: int = 0,
) -> None:
    """quantize_rows of x / sqrt(mean(x^2) + eps). With delta, x += delta_scales[row] * delta + delta_bias before.

    x, delta [num_rows, size], delta_scales [num_rows], delta_bias [size], all float32; out and scales as for
    quantize_rows.
    """

def silu_mul_quantize(
    gate_up: Any,
    gate_up_scales: Any,
    *,
    out: Any,
    scales: Any,
    bias: Any | None = None,
    num_segments: int = 1,
    num_threads: int = 0,
) -> None:
    """quantize_rows of gate / (1 + exp(-gate)) * up, with the same num_segments, from
    gate_up = gate_up_scales[row] * gate_up + bias.

    gate_up float32 [num_rows, 2 size]: gate, then up; gate_up_scales float32 [num_rows]; bias float32 [2 size]; out
    and scales as for quantize_rows.
    """

def argmax_and_lse(logits: Any, *, token_ids: Any, lse: Any, num_threads: int = 0) -> None:
    """For each row, the index of the largest logit (the first of equals) and log(sum(exp(logits))).

    logits [num_rows, vocab_size] float32 or bfloat16, vocab_size below 2^31; written: token_ids int32 and lse float32,
    both [num_rows].
    """

def sample(
    logits: Any,
    *,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    min_p: Any,
    uniform: Any,
    token_ids: Any,
    logprobs: Any,
    lse: Any,
    ruled_logits: Any = None,
    ruled_rows: Any = None,
    allowed: Any = None,
    allowed_rows: Any = None,
    num_threads: int = 0,
    stream: int = 0,
) -> None:
    """Draws one token per row, in one launch on a GPU. A row's token does not depend on other rows, on the number of
    threads, or on the position of the row.

    Temperature 0 takes the largest logit, the first of equals. Otherwise each token has the weight exp((logit - the
    largest) / temperature), and filters apply in vLLM's order: min_p drops weights below min_p (0 is off), top_k keeps
    the k likeliest (off below 1), and top_p keeps the fewest likeliest with top_p of the remaining mass (1 is off). The
    likeliest token always stays; of equal logits, lower indices are likelier. The token drawn is the first, in the
    order of the vocabulary, at which the sum of the kept weights exceeds `uniform` times their total. Orders and counts
    are exact, sums have a relative error within 1e-5. A NaN logit is never drawn.

    ruled_logits: float32 [num_ruled, vocab_size], drawn from instead of `logits` in rows whose number in ruled_rows,
        int32 [num_rows], is an index into it; any other number means none.
    allowed: int32 [num_allowed, ceil(vocab_size / 32)], the tokens that may be drawn in rows whose number in
        allowed_rows, int32 [num_rows], is an index into it: those whose bit, i % 32 of word i / 32, is 1, as in
        xgrammar's bitmasks. If none of them has a logit above -infinity, token 0 is drawn.

    logits [num_rows, vocab_size] float32 or bfloat16, on a GPU also float16, vocab_size from 1 to 2^31 - 1;
    temperature, top_p, min_p float32, top_k int32 and uniform float64 (in [0, 1)), all [num_rows]; written, [num_rows]:
    token_ids int32; logprobs float32, the log-probability of the token by `logits` alone; lse float32,
    log(sum(exp(logits))). Both are NaN if a logit is NaN or +infinity or all are -infinity.
    """

def has_cuda() -> bool:
    """Whether this build has CUDA kernels; it says nothing about the machine."""

def gpu_head_dims() -> list[int]:
    """The head_dims that attention on a GPU is compiled for, in builds that have it."""

def cpu_isa() -> str:
    """The instruction set of the CPU kernel in use; BATCHLLM_ISA chooses another."""

def cpu_isas() -> list[str]:
    """The values of BATCHLLM_ISA on this machine, slowest first."""

def shorten_time_slices(num_threads: int) -> None:
    """Asks Linux (6.12 or later) for time slices of at most 0.5 ms for the caller and the num_threads - 1 OpenMP
    threads that work with it. On a machine that others use, too, each then waits less for one that was descheduled in
    the middle of a product; its share of the CPUs stays the same. Elsewhere nothing happens."""
