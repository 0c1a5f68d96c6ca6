"""BatchLLM's planner and attention kernels. Needs NumPy only; tensors come in and go out by DLPack.

Arrays are taken from anyone: NumPy, torch, array.array, memoryview, whatever has the buffer protocol or `__dlpack__`.
Index arguments are one-dimensional, contiguous int32 arrays on the CPU unless another dtype is named; index results are
read-only NumPy arrays. Tensors are float32 or bfloat16, with a last dimension of unit stride. What is no array (a list,
None) or has other elements is a TypeError, any other wrong argument a ValueError; they name the argument, what was
expected and what came.

Threads: num_threads 0 is OpenMP's number (OMP_NUM_THREADS) unless said otherwise; over 1,024 is a ValueError. More than
the work has parts, or the machine has processors (16 always), are not started, which changes no result. Objects may be
used from several Python threads: those that never change at once, a BatchPlanner by one after the other. Long calls
release the GIL; the arrays of a call must not be changed while it runs. In a process that was forked after the import,
a call that needs OpenMP's threads, and every use of a BatchPlanner made before, is a RuntimeError: start processes by
"spawn".

Tensors are on the CPU. Where has_cuda(), append_kv, merge_state, merge_states, rms_norm, rotate, silu_and_mul and
sample also take CUDA tensors, norm_rotate_append these only, all on one device: the work is put on `stream`, a
cudaStream_t as int (torch.cuda.current_stream().cuda_stream), on which the tensors must be ready, and the call returns
before it is done.
"""

from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]

class PrefixTrie:
    """Every prefix that two prompts share, exact to the token.

    Nodes are numbered in preorder, the root is node 0; each has at least two readers. Requests are ranked
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
        """Prompt i is tokens[indptr[i] : max(indptr[i], indptr[i + 1] - drop_last)], and that of request i.

        tokens: int32 [num_tokens], kept alive, not copied. indptr: int64 or int32 [num_prompts + 1].
        num_threads: 0 is one per core.
        prompt_of_request: int32 [num_requests] where several requests have one prompt (samples of it): whose each is.
        """

    @property
    def num_requests(self) -> int: ...
    @property
    def num_nodes(self) -> int: ...
    @property
    def num_tokens(self) -> int:
        """Distinct prefixes: tokens that are left when everything shared is stored once."""

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
        """Recomputes everything from the prompts; RuntimeError on a mismatch."""

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
        """Prompt tokens that need not be computed, against no sharing."""

    @property
    def prompt_tokens(self) -> int: ...

def choose_segments(
    trie: PrefixTrie,
    levels: int | None = None,
    *,
    method: Literal["exact", "paper"] = "exact",
    reader_cost: float = 0.0,
) -> Segments:
    """Which nodes of the trie become segments: the most prompt tokens not computed.

    levels: None any depth, 1 a single level, 0 none.
    method: "exact" is the optimum; "paper" is the bottom-up pass of BatchLLM (MLSys 2026), a single level.
    reader_cost: tokens that one more segment costs each of its readers, part of what is optimised; LLM takes 2.
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
    def logit_batch(self) -> TokenBatch:
        """The output_rows as a batch over the same segments, one span each: what is left to compute once the last
        layer's K and V are written."""

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
        """[num_untold] rows whose token, -1 in token_ids, is not told yet (BatchPlanner.advance)."""

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
        score_begin), in ascending order. A row of a shared segment predicts each reader's own next token."""

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
        """Rows whose logits somebody reads, those of logit_rows and scored_rows, in ascending order."""

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
        """[num_segments] tokens stored once this batch's K and V are appended."""

class BatchPlanner:
    """Turns a job into token batches: next_batch(), run the model, commit(), until next_batch() returns None.

    Other threads may add requests and read meanwhile: every call waits for the one before to end.
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
        """The pool, the size of a step, and the first requests, as add_requests() takes them.

        order: how groups follow each other, always depth-first: "decode_first" by descending ratio of expected output
        to prefill tokens (the paper), "arrival" by the smallest request id, "blend" from both ends of the ratio
        (BlendServe, arXiv 2411.16102). max_running_requests: None leaves the bound to KV memory. window_left: positions
        before its own that a row sees in the layer that sees most, -1 all; what no later row sees is dropped.
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
        """Without requests yet; their ids will count on from first_request_id."""

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
        """Adds requests, before or while others run; they start after those that are there. Returns the first's id;
        ids are never given twice.

        tokens int32, kept alive until all these requests have ended, and indptr int64 or int32: the whole prompts;
        prompt_of_request as PrefixTrie takes it. max_output_tokens int32 [num_requests], at least 1 each.
        score_begin int32 [num_requests], at least 1 each: the position of the first prompt token whose log-probability
        is wanted; the prompt's length or more is none. Such prompts do not borrow.
        expected_output_tokens int32 [num_requests], 0 where unknown: then the group and the job teach it.
        Prefixes that unfinished requests hold in the pool when an added one starts are borrowed, not computed, where
        that saves more than reader_cost tokens per reader. An empty prompt, one that segments cover to its last token,
        or one that differs from its segments' tokens is a ValueError that names the request; nothing is added then.
        """

    def abort(self, request_ids: Any) -> None:
        """Ends requests (int32 ids), wherever they stand; those that ended before stay as they are.

        RuntimeError while a batch is in flight; IndexError for an id that was never given or is forgotten.
        """

    def forget(self, request_ids: Any) -> None:
        """Drops what is kept of requests (int32 ids) that finished, were aborted or refused; nothing may ask for them
        any more. ValueError where one still runs or waits, IndexError as abort()."""

    @property
    def refused(self) -> list[tuple[int, str]]:
        """Requests that can never fit the pool, and why, until they are forgotten. They are not scheduled."""

    @property
    def order(self) -> Int32Array:
        """Request ids, first to start first."""

    def num_cached_tokens(self, request_id: int) -> int:
        """Prompt tokens that others computed, 0 before it starts; a shared segment is charged to its first reader."""

    @property
    def stats(self) -> dict[str, int]:
        """num_requests, prompt_tokens, cached_prompt_tokens, borrowed_prompt_tokens (of segments of added requests),
        computed_prompt_tokens, recomputed_prompt_tokens, recomputed_tokens (with generated ones), output_tokens,
        steps, preemptions, num_pages, used_pages, peak_pages, running, waiting, finished, aborted.
        """

    def next_batch(self) -> TokenBatch | None:
        """None once every request is answered."""

    def advance(self) -> None:
        """Lets the next batch be planned before the tokens of the one in flight are told, by commit(): it runs behind
        it, and its untold_rows say where the device finds their tokens. Requests that reach their max_output_tokens end
        here, but are among those that commit() returns. RuntimeError where no batch is in flight, or where the tokens
        of the one before are still to be told.
        """

    def commit(self, sampled: Any, finished: Any = None) -> Int32Array:
        """Appends the sampled tokens of the oldest batch whose tokens are not told; returns the requests that finished.

        sampled: int32 [num_logits], for the batch's logit_request_ids; dropped for requests that were aborted or
        forgotten since next_batch(), or that finished in the batch before. finished: bool [num_logits]; a request also
        finishes at its max_output_tokens.
        """

    def output_tokens(self, request_id: int) -> Int32Array:
        """Those that were told."""

    def outputs(self, request_ids: Any) -> list[tuple[list[int], int]]:
        """Of each of the requests, int32 [R], its output_tokens and num_cached_tokens."""

    def audit(self) -> None:
        """Recomputes every count, range and page owner; RuntimeError on a mismatch."""

    @staticmethod
    def most_segment_pages(*, page_size: int = 16, max_batch_tokens: int = 1024, window_left: int = -1) -> int | None:
        """Pages that one segment, a request's own part or a shared one, holds at any time, however long it is. None
        without a window: then it holds those of all its tokens."""

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
) -> dict[str, Any]:
    """First come, first served over hashed KV blocks with LRU eviction, as vLLM does it.

    tokens, indptr as in PrefixTrie; output_tokens, max_output_tokens: int32 [num_requests]; an output takes a step per
    token, 2^24 at most. Returns the fields of batchllm.estimate.simulate.Simulation by name, all but policy.
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
) -> dict[str, Any]:
    """A radix cache with LRU eviction of leaves, as SGLang does it. page_size only decides what fits at all."""

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
) -> dict[str, Any]:
    """BatchPlanner itself, with outputs of the lengths that the job says."""

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
        """The plan as kernels take it, views into it: the structs of csrc/attention/plan/work_item.h, a row each.

        items [num_items, 6], rows [num_item_rows, 4], pieces [num_pieces, 4], page_ids [num_segment_pages],
        merge_rows [num_merged_rows, 3].
        """

    @property
    def sizes(self) -> dict[str, int]:
        """What a PlanLayout must have room for: num_rows, num_wide_tiles, num_narrow_tiles, num_item_rows, num_pieces,
        num_page_ids, num_merged_rows, num_partial_rows."""

    def explain(self, *, kv_dtype: Literal["float32", "bfloat16"] = "float32") -> dict[str, Any]:
        """Items, bytes and FLOPs of one layer, and the bytes if every request read its keys for itself; under
        "predicted_seconds" those of predict_seconds() for every GPU of gpu_peaks(). str(plan) has the predictions as a
        table.
        """

    def predict_seconds(
        self, *, flops_per_s: float, bytes_per_s: float, launch_s: float = 2e-6, device: str = ""
    ) -> dict[str, float]:
        """Seconds of one layer in bfloat16 on a GPU of such peaks: a model, not a measurement. Whatever else it takes
        is that of `device`, one of gpu_models(); "" is the plan's, and "a100" for a plan for a CPU. ValueError for
        peaks that are not positive, and for other devices.

        A launch takes the longest of its bytes at bytes_per_s, its blocks' times over all places for blocks, and the
        rounds in which they go; and launch_s. The ways through the batch, all by these formulas:

        plan: the launches of this plan's wide and narrow tiles (side by side where the GPU can), and their merge. Rows
        of q and partial states (out in bfloat16, lse in float32) count as often as they are read or written.
        per_request: a plan for this GPU in which every request reads its keys for itself.
        cascade: a launch for each level of the longest chain, planned for this GPU like ours, a merge where a level is
        split, and between levels a launch that makes one state of two. States are like ours.
        cascade_float32: the same with states in float32.
        """

class PlanLayout:
    """Room for plans in one buffer of int32 that a GPU reads. A plan's arrays stand in it at places that depend on the
    layout only, and what is behind a smaller plan is nothing to do: a CUDA graph may be replayed with another plan.
    """

    def __init__(self, plan: AttentionPlan, num_pages: int, **kwargs: int) -> None:
        """For plans of the heads of `plan`, with room for it and for the sizes of kwargs, by the names
        of AttentionPlan.sizes. num_pages: of k_pages and v_pages. ValueError for a head_dim that is none of
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
        """Writes the plan into buffer, int32 [num_ints] in the host's memory. ValueError, naming the size or the page
        id, for a plan that there is no room for."""

class DevicePlan:
    """A packed plan in a GPU's memory: what attention() on CUDA tensors takes. Keeps both tensors alive."""

    def __init__(self, layout: PlanLayout, buffer: Any, workspace: Any) -> None:
        """buffer: int32 [layout.num_ints], a copy of what layout.pack() wrote, on the stream of attention() or before.
        workspace: float32 of at least layout.num_workspace_floats elements, for one call at a time. Both on one GPU.
        """

def gpu_peaks() -> dict[str, dict[str, float]]:
    """By a GPU's name flops_per_s (dense bfloat16), bytes_per_s, launch_s: NVIDIA's data sheets, launches assumed."""

def gpu_models() -> dict[str, dict[str, Any]]:
    """By the device of plan_attention what plans and predictions take a GPU for. Of data sheets: name,
    num_multiprocessors, flops_per_s (dense bfloat16), bytes_per_s, memory_bytes, l2_bytes, shared_bytes (of a
    multiprocessor), begins_early (launches may overlap). Assumed: launch_s (between two kernels in a graph),
    multiprocessor_bytes_per_s (what one loads from the L2 cache), block_s (of a block apart from its keys)."""

def nearest_gpu(name: str, capability: int) -> str:
    """The one of gpu_models() that is most like a GPU: by what the driver calls it, else by the major number of its
    compute capability."""

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

    share: True where the cost model says that it pays, "always" without asking it, False request by request.
    num_threads: what the work is balanced for: threads, where 0 is OpenMP's number, or a GPU's multiprocessors, where 0
    is the device's number; at most 1,024.
    Bounds: positions below 2^31 - 1, 2^24 rows, 2^26 pairs of a row and a link of its span, 1,024 heads of at most
    8,192 elements; ValueError beyond.
    window_left: positions before its own that a row sees; -1 all.
    device: whose kernels the work is cut for: the CPU's, or a GPU's of gpu_models(), by whose numbers the plan is
    predicted to take the least time; "cuda" is "a100". Those of any device execute the plan.
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

    q, out: [num_tokens, num_qo_heads, head_dim]. k_pages, v_pages: [num_pages, page_size, num_kv_heads, head_dim].
    lse: float32 [num_tokens, num_qo_heads], natural log; -inf where a row sees nothing. True makes one; None is
    returned as it is, and none is computed.
    softmax_scale: 1 / sqrt(head_dim) by default. soft_cap: cap * tanh(score / cap), before the mask; 0 is off.
    sinks: float32 [num_qo_heads], scores of one more key with v = 0.
    dtype: "bfloat16" where NumPy uint16 arrays hold it. Outputs that are not given are made by q's library, or
    by NumPy where q is JAX's and float32.

    With a DevicePlan: CUDA tensors, bfloat16 or float16 all of them, whose memory and strides are multiples of 16
    bytes; num_tokens is the layout's num_rows, and rows that the plan does not have are not written. The work is put on
    `stream`, a cudaStream_t, and nothing is waited for: a CUDA graph may capture the call if it is given out and lse.
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
    """`attention` in float64 and plain loops, without a plan."""

def merge_state(
    out_a: Any, lse_a: Any, out_b: Any, lse_b: Any, *, lse_base: Literal["e", "2"] = "e", stream: int = 0
) -> tuple[Any, Any]:
    """Attention over two disjoint sets of keys, from the attention over each; returns (out, lse).

    out: [num_tokens, num_heads, head_dim]. lse: float32 [num_tokens, num_heads]; -inf or +inf where the set is empty,
    and then `out` may hold anything.
    """

def merge_states(out: Any, lse: Any, *, lse_base: Literal["e", "2"] = "e", stream: int = 0) -> tuple[Any, Any]:
    """The same over dimension 1 of out [num_tokens, num_states, num_heads, head_dim] and lse [..., num_heads]."""

def append_kv(k: Any, v: Any, slots: Any, k_pages: Any, v_pages: Any, *, num_threads: int = 0, stream: int = 0) -> None:
    """Writes k, v [num_tokens, num_kv_heads, head_dim] to slots, int64 [num_tokens]: page_id * page_size + offset.

    On a GPU a slot outside the pages is no error, since the call would have to wait for it: its row is not written.
    """

def rms_norm(
    x: Any, weight: Any, *, eps: float, out: Any, delta: Any | None = None, num_threads: int = 0, stream: int = 0
) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight over the last dimension; out may be x. With delta, x += delta before.

    x, out, delta [num_rows, size] or [num_rows, num_heads, size], weight [size]; all float32 or all bfloat16, on a
    GPU also all float16. The sum is rounded to x's type, all else is float32, rounded once.
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
    """On a GPU in one launch what rms_norm (where there are weights), rotate and append_kv do in turn: q is normed and
    rotated in place, k_pages[slot] becomes k normed and rotated, v_pages[slot] v. k and v are left as they are, and
    nothing is written for a row whose slot is none of the pages'.

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
    """Rows in 8 bits, of which an element stands for scales[row] * (out - 128): a row's scale is its largest magnitude
    / 127 (NaN where an element is), and elements are rounded to nearest. With more than one segment, of H(x): the
    orthogonal Hadamard transform over num_segments (a power of two that divides size) equal segments of a row.

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
    """x / sqrt(mean(x^2) + eps) as quantize_rows. With delta, x += delta_scales[row] * delta + delta_bias before.

    x, delta [num_rows, size], delta_scales [num_rows], delta_bias [size], all float32; out and scales as there.
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
    """H(gate / (1 + exp(-gate)) * up) as quantize_rows, of gate_up = gate_up_scales[row] * gate_up + bias; with H as
    there.

    gate_up float32 [num_rows, 2 size]: gate, then up; gate_up_scales float32 [num_rows]; bias float32 [2 size]; out
    and scales as there.
    """

def argmax_and_lse(logits: Any, *, token_ids: Any, lse: Any, num_threads: int = 0) -> None:
    """Of every row the index of the largest logit (the first of equals) and log(sum(exp(logits))).

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
    """One token of every row, by one launch on a GPU. No row's token depends on the other rows, on the number of
    threads, or on where the row lies.

    Temperature 0: the largest logit, the first of equals. Else every token has the weight exp((logit - the largest) /
    temperature), of which in this order, vLLM's, min_p leaves out those below min_p (0 is off), top_k keeps the k
    likeliest (off below 1), and top_p the fewest of the likeliest with top_p of the mass that is left (1 is off). The
    likeliest token stays; of equal logits those with lower indices are likelier. The token is the first, in the order
    of the vocabulary, with which the sum of the weights that are kept exceeds `uniform` times all of it. Orders and
    counts are exact, sums within 1e-5 of themselves. A logit that is NaN is never drawn.

    ruled_logits [num_ruled, vocab_size] float32 is what tokens are drawn from instead in rows whose place in ruled_rows
    int32 [num_rows] is in it; any other number is no place.

    allowed int32 [num_allowed, ceil(vocab_size / 32)] says which tokens may be drawn in rows whose place in
    allowed_rows int32 [num_rows] is in it: those whose bit, i % 32 of word i / 32, is 1, as in xgrammar's bitmasks.
    Where none of them has a logit above -infinity, token 0 is drawn.

    logits [num_rows, vocab_size] float32 or bfloat16, on a GPU also float16, vocab_size from 1 to 2^31 - 1;
    temperature, top_p, min_p float32, top_k int32 and uniform float64 (in [0, 1)), all [num_rows]; written, [num_rows]:
    token_ids int32; logprobs float32, the log-probability of the token by `logits` alone; lse float32,
    log(sum(exp(logits))). Both are NaN where a logit is NaN or +infinity or all are -infinity.
    """

def has_cuda() -> bool:
    """Whether this build has CUDA kernels; it says nothing of the machine."""

def gpu_head_dims() -> list[int]:
    """What head_dims attention on a GPU is compiled for, in builds that have it."""

def cpu_isa() -> str:
    """The instruction set of the CPU kernel in use; BATCHLLM_ISA chooses another."""

def cpu_isas() -> list[str]:
    """What BATCHLLM_ISA may name on this machine, slowest first."""
