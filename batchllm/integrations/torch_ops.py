"""Our kernels as torch operators, for your own models: importing this registers `torch.ops.batchllm.*`.

They have fake implementations, so torch.compile(fullgraph=True) and torch.export can trace them. They run where their
tensors are: on a CPU in float32 or bfloat16, on a GPU (torch's current stream) also in float16. They have no gradients.
Names, shapes and errors are those of batchllm_ext's functions.
"""

from __future__ import annotations

from itertools import count
from typing import Any, Literal, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.library import custom_op

import batchllm_ext as ext
from batchllm.integrations.planned_attention import PlannedAttention, stream_of

_numbers = count(1)
_plans: WeakValueDictionary[int, Plan] = WeakValueDictionary()


class Plan(PlannedAttention):
    """The attention of one batch, for every layer of one kind. Operators take its `handle`, whose value is not compiled
    into a graph, so the next batch's plan runs through the same graph. A handle is valid as long as its plan lives."""

    def __init__(self, *batch: Any, device: torch.device | str = "cpu", **shape: Any) -> None:
        """batch: a TokenBatch, or its eight arrays. device: that of the tensors. shape: num_qo_heads, num_kv_heads,
        head_dim, page_size, and optionally window_left. Raises ValueError for arrays that contradict each other."""
        super().__init__(batch, torch.device(device), **shape)
        number = next(_numbers)
        self.handle = torch.tensor(number)  # int64 [], on the CPU
        _plans[number] = self


@custom_op("batchllm::attention", mutates_args=())
def attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plan: Tensor,
    softmax_scale: float | None = None,
    soft_cap: float = 0.0,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse), by the plan with that handle."""
    planned = _plans.get(int(plan))
    if planned is None:
        raise ValueError(f"plan: expected the handle of a live Plan, got {int(plan)}")
    out, lse = _new_state(q)
    planned(
        *_detached(q, k_pages, v_pages),
        out=out,
        lse=lse,
        softmax_scale=softmax_scale,
        soft_cap=soft_cap,
        sinks=None if sinks is None else sinks.detach(),
    )
    return out, lse


@attention.register_fake
def _(q: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return _new_state(q)


@custom_op("batchllm::merge_state", mutates_args=())
def merge_state(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, lse_base: str = "e"
) -> tuple[Tensor, Tensor]:
    """Merges attention over two disjoint sets of keys; returns (out, lse)."""
    base = cast(Literal["e", "2"], lse_base)  # a schema has only strings
    return ext.merge_state(*_detached(out_a, lse_a, out_b, lse_b), lse_base=base, stream=stream_of(out_a))


@merge_state.register_fake
def _(out_a: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return _new_state(out_a)


@custom_op("batchllm::merge_states", mutates_args=())
def merge_states(out: Tensor, lse: Tensor, lse_base: str = "e") -> tuple[Tensor, Tensor]:
    """The same over dimension 1 of both."""
    base = cast(Literal["e", "2"], lse_base)
    return ext.merge_states(*_detached(out, lse), lse_base=base, stream=stream_of(out))


@merge_states.register_fake
def _(out: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return _new_state(out[:, 0])


@custom_op("batchllm::append_kv", mutates_args=("k_pages", "v_pages"))
def append_kv(k: Tensor, v: Tensor, slots: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
    """Writes k and v to slots of the pages."""
    ext.append_kv(*_detached(k, v, slots, k_pages, v_pages), stream=stream_of(k))


@custom_op("batchllm::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
    out = x.new_empty(x.shape)
    ext.rms_norm(*_detached(x, weight), eps=eps, out=out, stream=stream_of(x))
    return out


@rms_norm.register_fake
def _(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty(x.shape)


@custom_op("batchllm::add_rms_norm", mutates_args=("x",))
def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x += delta, then rms_norm of x."""
    out = x.new_empty(x.shape)
    stream = stream_of(x)
    x, delta, weight = _detached(x, delta, weight)
    ext.rms_norm(x, weight, eps=eps, out=out, delta=delta, stream=stream)
    return out


@add_rms_norm.register_fake
def _(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty(x.shape)


@custom_op("batchllm::rotate", mutates_args=("x",))
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotary embedding in place."""
    ext.rotate(*_detached(x, cos, sin), stream=stream_of(x))


@custom_op("batchllm::silu_and_mul", mutates_args=())
def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, of the two halves of each row."""
    out = _half_rows(gate_up)
    ext.silu_and_mul(gate_up.detach(), out=out, stream=stream_of(gate_up))
    return out


@silu_and_mul.register_fake
def _(gate_up: Tensor) -> Tensor:
    return _half_rows(gate_up)


@custom_op("batchllm::sample", mutates_args=())
def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
    allowed: Tensor | None = None,
    allowed_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(token_ids, logprobs, lse) of every row."""
    token_ids, logprobs, lse = _new_draws(logits)
    ext.sample(
        logits.detach(),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        uniform=uniform,
        allowed=allowed,
        allowed_rows=allowed_rows,
        token_ids=token_ids,
        logprobs=logprobs,
        lse=lse,
        stream=stream_of(logits),
    )
    return token_ids, logprobs, lse


@sample.register_fake
def _(logits: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _new_draws(logits)


def _detached(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Detached tensors: a module's parameters require gradients, which DLPack refuses."""
    return tuple(tensor.detach() for tensor in tensors)


def _new_state(q: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


def _half_rows(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


def _new_draws(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    new = logits.new_empty
    rows = logits.shape[0]
    return new(rows, dtype=torch.int32), new(rows, dtype=torch.float32), new(rows, dtype=torch.float32)
