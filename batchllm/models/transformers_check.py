"""Checks that rows packed into one sequence get what each prompt gets alone by transformers' own attention.

Modules may bypass attention: by a recurrence over a sequence, a mask of their own, or counted positions. Two prompts
that share their beginning, prefilled in parts and decoded together, reveal it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

import batchllm_ext as ext
from batchllm.device.kv_cache import PagedKVCache
from batchllm.device.ops import CpuOps
from batchllm.device.step import cpu_step
from batchllm.models.fields import Unsupported
from batchllm.models.forward_pass import ForwardPass
from batchllm.models.layer_spec import attention_plans, logit_plans

SHARED_TOKENS, OWN_TOKENS, OUTPUT_TOKENS = 5, (3, 4), 2
PAGE_SIZE, NUM_PAGES, MAX_BATCH_TOKENS = 4, 16, 6
STRIDE = 7919  # of the token ids, a prime
# Root mean square of the error, relative to that of the logits. A wrong kind of computation is near 1; in bfloat16 a
# row may go to another expert.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.25}


class PackedCheck:
    """To be made while the model still uses transformers' attention."""

    def __init__(self, model: PreTrainedModel, vocab_size: int) -> None:
        ids = (1 + STRIDE * np.arange(sum(OWN_TOKENS) + SHARED_TOKENS + 2 * OUTPUT_TOKENS)) % vocab_size
        shared, *rest = np.split(ids.astype(np.int32), np.cumsum([SHARED_TOKENS, *OWN_TOKENS, OUTPUT_TOKENS]))
        self.prompts = [np.concatenate([shared, own]) for own in rest[: len(OWN_TOKENS)]]
        self.outputs = np.stack(rest[len(OWN_TOKENS) :])  # [2, OUTPUT_TOKENS]
        self.expected: list[Tensor] = []  # of each prompt [OUTPUT_TOKENS, vocab_size]
        for prompt, output in zip(self.prompts, self.outputs, strict=True):
            token_ids = torch.tensor(np.concatenate([prompt, output[:-1]]), device=model.device)[None].long()
            self.expected.append(model(input_ids=token_ids, use_cache=False).logits[0, len(prompt) - 1 :].float())

    def compare(self, model: ForwardPass) -> None:
        """Raises Unsupported if the model gives other logits when run by an engine. Logits that are not finite end the
        first job instead."""
        expected = torch.stack(self.expected)
        if not expected.isfinite().all():
            return
        error = (self._logits(model) - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        if not error <= TOLERANCES[model.dtype]:
            raise Unsupported(
                f"sequences that are packed get other logits than each alone: the error is {error:.2g} of their size"
            )

    def _logits(self, model: ForwardPass) -> Tensor:
        """float32 [2, OUTPUT_TOKENS, vocab_size]"""
        tokens, indptr = np.concatenate(self.prompts), np.cumsum([0, *map(len, self.prompts)])
        planner = ext.BatchPlanner(
            tokens,
            indptr,
            ext.choose_segments(ext.PrefixTrie(tokens, indptr, drop_last=1)),
            max_output_tokens=np.full(len(indptr) - 1, OUTPUT_TOKENS, np.int32),
            num_pages=NUM_PAGES,
            page_size=PAGE_SIZE,
            max_batch_tokens=MAX_BATCH_TOKENS,
        )
        layers = [model.attention_kinds[kind] for kind in model.kind_of_layer]
        kv_cache = PagedKVCache.allocate(layers, NUM_PAGES, PAGE_SIZE, model.dtype, model.device)
        num_threads = torch.get_num_threads()
        logits: list[list[Tensor]] = [[] for _ in self.prompts]
        while (batch := planner.next_batch()) is not None:
            plans = attention_plans(batch, model.attention_kinds, PAGE_SIZE, num_threads=num_threads)
            step = cpu_step(batch, plans, logit_plans(batch, plans))
            hidden = model.forward(step, kv_cache, CpuOps(num_threads))
            ids = batch.logit_request_ids
            for request, row in zip(ids.tolist(), model.logits(hidden).float(), strict=True):
                logits[request].append(row)
            planner.commit(np.array([self.outputs[i, len(logits[i]) - 1] for i in ids.tolist()], np.int32))
        return torch.stack([torch.stack(rows) for rows in logits])
