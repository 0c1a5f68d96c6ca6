"""Every call of batchllm_ext that takes arrays, with small valid ones, about which test_arrays.py checks the same
things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import batchllm_ext as ext
from tests.planner.replay import ragged

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Call:
    """run(**arrays) makes the call, on new objects where it changes any, and returns all that comes of it but what is
    written to the arrays `outputs`."""

    run: Callable[..., Any]
    arrays: Arrays
    outputs: tuple[str, ...] = ()
    takes_cuda: bool = False  # where the build has kernels
    free_strides: tuple[str, ...] = field(default=())  # any stride is right, or is looked at later

    def with_copies(self) -> Arrays:
        return {name: array.copy() for name, array in self.arrays.items()}


PROMPTS = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6], [7, 8]]
TOKENS, INDPTR = ragged(PROMPTS)
BOUNDS = np.array([3, 2, 3, 2], np.int32)
EACH_ITS_OWN = np.arange(4, dtype=np.int32)
JOB = {"tokens": TOKENS, "indptr": INDPTR}
SIMULATED = {**JOB, "output_tokens": BOUNDS - 1, "max_output_tokens": BOUNDS}
SEGMENTS = ext.choose_segments(ext.PrefixTrie(TOKENS, INDPTR, drop_last=1))
SEGMENT_ARRAYS = {
    name: np.array(getattr(SEGMENTS, name))
    for name in ("parent", "token_begin", "token_end", "owner_request", "request_segment")
}
POOL: dict[str, Any] = {"num_pages": 20, "page_size": 2}
BATCH_NAMES = (
    *("span_indptr", "span_begin", "link_indptr", "link_segment"),
    *("segment_page_indptr", "segment_page_ids", "segment_begin", "segment_num_tokens"),
)


def new_planner() -> ext.BatchPlanner:
    return ext.BatchPlanner(TOKENS, INDPTR, SEGMENTS, max_output_tokens=BOUNDS, **POOL)


def trie(tokens: Any, indptr: Any, prompt_of_request: Any) -> list[Any]:
    made = ext.PrefixTrie(tokens, indptr, prompt_of_request=prompt_of_request)
    return [made.num_tokens, made.order, made.token_begin, made.token_end]


def segments(**arrays: Any) -> list[Any]:
    made = ext.Segments(**arrays)
    return [np.array(getattr(made, name)) for name in SEGMENT_ARRAYS]


def answered(planner: ext.BatchPlanner) -> list[Any]:
    """All batches of a job, and its final statistics."""
    seen: list[Any] = []
    while (batch := planner.next_batch()) is not None:
        seen += [batch.token_ids, batch.slots, batch.score_token_ids]
        planner.commit(np.full(len(batch.logit_rows), 9, np.int32))
    return [*seen, planner.stats]


def added(tokens: Any, indptr: Any, **arrays: Any) -> list[Any]:
    planner = ext.BatchPlanner(**POOL)
    first = planner.add_requests(tokens, indptr, SEGMENTS, **arrays)
    return [first, *answered(planner)]


def committed(sampled: Any, finished: Any) -> list[Any]:
    planner = new_planner()
    planner.next_batch()
    return [planner.commit(sampled, finished), *answered(planner)]


def outputs(request_ids: Any) -> list[Any]:
    planner = new_planner()
    answered(planner)
    return planner.outputs(request_ids)


def aborted(request_ids: Any) -> list[Any]:
    planner = new_planner()
    planner.abort(request_ids)
    return answered(planner)


def forgotten(request_ids: Any) -> list[Any]:
    planner = new_planner()
    answered(planner)
    planner.forget(request_ids)
    return [planner.order]


def first_batch() -> ext.TokenBatch:
    batch = new_planner().next_batch()
    assert batch is not None
    return batch


HEADS = {"num_qo_heads": 2, "num_kv_heads": 1, "head_dim": 8, "page_size": 2}
BATCH = first_batch()
BATCH_ARRAYS = {name: np.array(getattr(BATCH, name)) for name in BATCH_NAMES}
PLAN = ext.plan_attention(BATCH, **HEADS, num_threads=1)
LAYOUT = ext.PlanLayout(ext.plan_attention(BATCH, **HEADS | {"head_dim": 64}, num_threads=1), 20)
RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


ATTENTION = {
    "q": floats(BATCH.num_tokens, 2, 8),
    "k_pages": floats(20, 2, 1, 8),
    "v_pages": floats(20, 2, 1, 8),
    "out": floats(BATCH.num_tokens, 2, 8),
    "lse": floats(BATCH.num_tokens, 2),
    "sinks": floats(2),
}


def plan_sizes(**arrays: Any) -> list[Any]:
    return list(ext.plan_attention(**arrays, **HEADS, num_threads=1).buffers.values())


def pack(buffer: Any) -> None:
    LAYOUT.pack(ext.plan_attention(BATCH, **HEADS | {"head_dim": 64}, num_threads=1), buffer)


def rows_of_plan(rows: Any) -> list[Any]:
    return list(PLAN.for_rows(rows).buffers.values())


def discard(function: Callable[..., Any], **options: Any) -> Callable[..., None]:
    """The call for what it writes."""

    def run(**arrays: Any) -> None:
        function(**arrays, **options)

    return run


STATE = {"out_a": floats(3, 2, 8), "lse_a": floats(3, 2), "out_b": floats(3, 2, 8), "lse_b": floats(3, 2)}
ROWS = floats(3, 8)
QUANTIZED = {"out": np.zeros((3, 8), np.uint8), "scales": floats(3)}

CALLS = {
    "PrefixTrie.__init__": Call(trie, {**JOB, "prompt_of_request": EACH_ITS_OWN}),
    "Segments.__init__": Call(segments, SEGMENT_ARRAYS),
    "BatchPlanner.__init__": Call(
        lambda **arrays: answered(ext.BatchPlanner(segments=SEGMENTS, **POOL, **arrays)),
        {**JOB, "max_output_tokens": BOUNDS, "expected_output_tokens": BOUNDS - 1},
    ),
    "BatchPlanner.add_requests": Call(
        added,
        {
            **JOB,
            "max_output_tokens": BOUNDS,
            "expected_output_tokens": BOUNDS - 1,
            "prompt_of_request": EACH_ITS_OWN,
            "score_begin": np.array([1, 9, 2, 9], np.int32),
        },
    ),
    "BatchPlanner.abort": Call(aborted, {"request_ids": EACH_ITS_OWN[1:3]}),
    "BatchPlanner.forget": Call(forgotten, {"request_ids": EACH_ITS_OWN[1:3]}),
    "BatchPlanner.outputs": Call(outputs, {"request_ids": EACH_ITS_OWN[1:3]}),
    "BatchPlanner.commit": Call(
        committed,
        {"sampled": np.array([5, 6, 7, 8], np.int32), "finished": np.array([True, False, False, True])},
    ),
    "simulate_lru": Call(lambda **a: ext.simulate_lru(**a, kv_tokens=40), SIMULATED),
    "simulate_radix": Call(lambda **a: ext.simulate_radix(**a, kv_tokens=40), SIMULATED),
    "simulate_planned": Call(lambda **a: ext.simulate_planned(segments=SEGMENTS, **a, kv_tokens=40), SIMULATED),
    "plan_attention": Call(plan_sizes, BATCH_ARRAYS),
    "AttentionPlan.for_rows": Call(rows_of_plan, {"rows": np.array([0, BATCH.num_tokens - 1], np.int32)}),
    "TokenBatch.write_rows": Call(
        discard(BATCH.write_rows),
        {
            "slots": np.zeros(BATCH.num_tokens + 1, np.int64),
            "token_ids": np.zeros(BATCH.num_tokens + 1, np.int32),
            "positions": np.zeros(BATCH.num_tokens + 1, np.int32),
        },
        ("slots", "token_ids", "positions"),
    ),
    "PlanLayout.pack": Call(pack, {"buffer": np.zeros(LAYOUT.num_ints, np.int32)}, ("buffer",)),
    "attention": Call(discard(ext.attention, plan=PLAN), ATTENTION, ("out", "lse"), free_strides=("lse",)),
    "attention_ref": Call(
        discard(ext.attention_ref), {**BATCH_ARRAYS, **ATTENTION}, ("out", "lse"), free_strides=("lse",)
    ),
    "merge_state": Call(
        lambda **a: list(ext.merge_state(**a)), STATE, takes_cuda=True, free_strides=("lse_a", "lse_b")
    ),
    "merge_states": Call(
        lambda **a: list(ext.merge_states(**a)),
        {"out": floats(3, 2, 2, 8), "lse": floats(3, 2, 2)},
        takes_cuda=True,
        free_strides=("lse",),
    ),
    "append_kv": Call(
        discard(ext.append_kv),
        {
            **{"k": floats(3, 1, 8), "v": floats(3, 1, 8), "slots": np.array([5, 0, 3])},
            **{"k_pages": floats(3, 2, 1, 8), "v_pages": floats(3, 2, 1, 8)},
        },
        ("k_pages", "v_pages"),
        takes_cuda=True,
    ),
    "rms_norm": Call(
        discard(ext.rms_norm, eps=1e-6),
        {"x": ROWS, "weight": floats(8), "out": floats(3, 8), "delta": floats(3, 8)},
        ("x", "out"),
        takes_cuda=True,
    ),
    "rotate": Call(
        discard(ext.rotate),
        {"x": floats(3, 2, 8), "cos": floats(3, 4), "sin": floats(3, 4)},
        ("x",),
        takes_cuda=True,
    ),
    "silu_and_mul": Call(discard(ext.silu_and_mul), {"gate_up": floats(3, 16), "out": ROWS}, ("out",), takes_cuda=True),
    "quantize_rows": Call(discard(ext.quantize_rows), {"x": ROWS, **QUANTIZED}, ("out", "scales")),
    "dequantize_rows": Call(
        discard(ext.dequantize_rows), {"x": ROWS, "scales": floats(3), "bias": floats(8), "out": floats(3, 8)}, ("out",)
    ),
    "norm_quantize": Call(
        discard(ext.norm_quantize, eps=1e-6),
        {"x": ROWS, "delta": floats(3, 8), "delta_scales": floats(3), "delta_bias": floats(8), **QUANTIZED},
        ("x", "out", "scales"),
    ),
    "silu_mul_quantize": Call(
        discard(ext.silu_mul_quantize),
        {"gate_up": floats(3, 16), "gate_up_scales": floats(3), "bias": floats(16), **QUANTIZED},
        ("out", "scales"),
    ),
    "sample": Call(
        discard(ext.sample),
        {
            "logits": floats(3, 40),
            "temperature": np.ones(3, np.float32),
            "top_k": np.zeros(3, np.int32),
            "top_p": np.ones(3, np.float32),
            "min_p": np.zeros(3, np.float32),
            "uniform": np.full(3, 0.5),
            "token_ids": np.zeros(3, np.int32),
            "logprobs": floats(3),
            "lse": floats(3),
            "ruled_logits": floats(2, 40),
            "ruled_rows": np.array([-1, 0, 1], np.int32),
            "allowed": np.full((2, 2), -1, np.int32),
            "allowed_rows": np.array([1, -1, 0], np.int32),
        },
        ("token_ids", "logprobs", "lse"),
        takes_cuda=True,
    ),
    "argmax_and_lse": Call(
        discard(ext.argmax_and_lse),
        {"logits": ROWS, "token_ids": np.zeros(3, np.int32), "lse": floats(3)},
        ("token_ids", "lse"),
    ),
}
# What takes CUDA tensors only: tests/attention/test_cuda.py and tests/rows/test_cuda_row_ops.py tell it of these.
ON_A_GPU_ONLY = {"DevicePlan.__init__", "norm_rotate_append"}
