"""What error a 16-bit attention may have: twice that of PyTorch's own operators in the same type."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tests.cases import Inputs
from tests.reference import assert_close, attention_reference
from tests.simt.backend import Result

TORCH_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def lse_bound(max_score: float | np.ndarray, head_dim: int, *, cuts_off: bool) -> float | np.ndarray:
    """Of the error of a log-sum-exp whose scores, in size, reach max_score. Where sums are cut off, as tensor cores do,
    and not rounded to nearest, as the emulator does, head_dim counts (test_truncation.py)."""
    return 1e-5 * (1.0 + max_score / 8.0) * (max(1.0, head_dim / 128) if cuts_off else 1.0)


class Law:
    """What the results for some inputs, rounded to dtype, must be."""

    def __init__(self, inputs: Inputs, dtype: str, *, on_gpu: bool = False):
        self.out, self.lse, max_score = attention_reference(inputs)
        torch_error = np.abs(torch_attention(inputs, dtype) - self.out).max(initial=0.0)
        self.out_bound = 2.0 * torch_error + 1e-6  # where PyTorch is exact, so are the kernels but for their float32
        self.lse_bound = lse_bound(max_score, inputs.case.head_dim, cuts_off=on_gpu)

    def check(self, result: Result) -> None:
        assert_close("out", result.out, self.out, self.out_bound)
        assert_close("lse", result.lse, self.lse, self.lse_bound)


def check(inputs: Inputs, result: Result, dtype: str, *, on_gpu: bool = False) -> None:
    Law(inputs, dtype, on_gpu=on_gpu).check(result)


def torch_attention(inputs: Inputs, dtype: str) -> np.ndarray:
    """One span at a time, every operator's result in `dtype`; rows that see nothing are 0."""
    case = inputs.case
    group_size = case.num_qo_heads // case.num_kv_heads
    scale = case.head_dim**-0.5 if case.softmax_scale is None else case.softmax_scale

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(TORCH_TYPES[dtype])

    out = np.zeros(inputs.q.shape, np.float32)
    row = 0
    for span in inputs.spans:
        rows = slice(row, row + span.num_rows)
        row += span.num_rows
        if not span.links or not span.num_rows:
            continue
        keys, values, positions = chain(inputs, span.links)
        at = span.begin + np.arange(span.num_rows)[:, None]
        seen = positions <= at
        if case.window_left >= 0:
            seen &= positions >= at - case.window_left
        q = tensor(inputs.q[rows]).transpose(0, 1)  # [heads, rows, head_dim]
        k = tensor(keys).repeat_interleave(group_size, 1).permute(1, 2, 0)
        v = tensor(values).repeat_interleave(group_size, 1).transpose(0, 1)
        scores = q @ k * scale
        if case.soft_cap:
            scores = case.soft_cap * torch.tanh(scores / case.soft_cap)
        scores = scores.masked_fill(~torch.from_numpy(seen), -torch.inf)
        if inputs.sinks is not None:
            sinks = tensor(inputs.sinks)[:, None, None].expand(-1, span.num_rows, 1)
            scores = torch.cat([scores, sinks], 2)
        weights = torch.softmax(scores, 2)[..., : len(positions)].nan_to_num(0.0)
        out[rows] = (weights @ v).transpose(0, 1).float().numpy()
    return out


def chain(inputs: Inputs, links: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, values and positions of a span's links; a link ends where the next one begins."""
    keys, values, positions = [], [], []
    for index, link in enumerate(links):
        segment = inputs.segments[link]
        end = segment.begin + segment.num_tokens
        if index + 1 < len(links):
            end = inputs.segments[links[index + 1]].begin
        keys.append(inputs.segment_k[link][: end - segment.begin])
        values.append(inputs.segment_v[link][: end - segment.begin])
        positions.append(np.arange(segment.begin, end))
    return np.concatenate(keys), np.concatenate(values), np.concatenate(positions)


def of_spans(inputs: Inputs, chosen: list[int]) -> Inputs:
    """The rows of some spans only."""
    rows = np.concatenate([np.arange(*inputs.arrays["span_indptr"][span : span + 2]) for span in chosen])
    return replace(inputs, spans=[inputs.spans[span] for span in chosen], q=inputs.q[rows])
