"""Teacher forcing: the logits for continuations that the test chooses, ours and transformers'."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from batchllm import LLM, SamplingParams
from batchllm.engine.engine import Job
from batchllm.sampling.stopping import StopStringWatcher

Tokens = list[int]


@dataclass
class ForcedSampler:
    """Stands in the sampler's place: records the logits of every row and answers with the given continuation, at
    whose end the request stops."""

    continuations: list[Tokens]
    logits: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)

    def sample(self, logits, request_ids, num_output_tokens, ops):
        places = list(zip(request_ids.tolist(), num_output_tokens.tolist(), strict=True))
        for row, place in enumerate(places):
            assert place not in self.logits, f"request {place[0]} sampled token {place[1]} twice"
            self.logits[place] = logits[row].float().cpu()
            self.lengths[place[0]] = place[1] + 1
        tokens = np.array([self.continuations[request][position] for request, position in places], np.int32)
        return tokens, np.zeros(len(places), np.float32)

    def ends(self, tokens, request_ids):
        ended = [self.lengths[request] == len(self.continuations[request]) for request in request_ids.tolist()]
        return np.array(ended, bool)


def our_logits(llm: LLM, prompts: list[Tokens], continuations: list[Tokens]) -> list[torch.Tensor]:
    """For each prompt, float32 [len(continuation), vocab_size]: the logits that each of its tokens is drawn from."""
    sampler = ForcedSampler(continuations)
    indptr = np.zeros(len(prompts) + 1, np.int64)
    np.cumsum([len(prompt) for prompt in prompts], out=indptr[1:])
    job = Job(
        tokens=np.concatenate([np.array(prompt, np.int32) for prompt in prompts]),
        indptr=indptr,
        max_output_tokens=np.array([len(tokens) for tokens in continuations], np.int32),
        expected_output_tokens=np.zeros(len(continuations), np.int32),
        sampler=sampler,
        stop_strings=StopStringWatcher([SamplingParams()] * len(prompts), None),
    )
    finished = sorted(done.request_id for done in llm._engine.run(job))
    assert finished == list(range(len(prompts))), "every request is answered exactly once"
    return [
        torch.stack([sampler.logits[request, position] for position in range(len(continuation))])
        for request, continuation in enumerate(continuations)
    ]


@torch.inference_mode()
def transformers_logits(model, prompts: list[Tokens], continuations: list[Tokens]) -> list[torch.Tensor]:
    """The same from a transformers model, one prompt at a time, without any cache; float32."""
    logits = []
    for prompt, continuation in zip(prompts, continuations, strict=True):
        ids = torch.tensor([prompt + continuation[:-1]])
        logits.append(model(ids, use_cache=False).logits[0, len(prompt) - 1 :].float())
    return logits


def assert_logits_agree(ours: list[torch.Tensor], theirs: list[torch.Tensor], tolerance: float) -> None:
    """max|ours - theirs| <= tolerance * max|theirs|, for every prompt; names the first that fails."""
    for request, (mine, reference) in enumerate(zip(ours, theirs, strict=True)):
        assert mine.shape == reference.shape
        assert mine.isfinite().all(), f"request {request}: logits are not finite"
        error = (mine - reference).abs().amax(dim=-1) / reference.abs().max()
        position = int(error.argmax())
        assert error[position] <= tolerance, (
            f"request {request}, output position {position}: error {error[position]:.2e} of max|logit|, "
            f"allowed {tolerance:.0e}"
        )


def assert_greedy_agrees(outputs: list[Tokens], theirs: list[torch.Tensor], tolerance: float) -> int:
    """Our tokens are transformers' argmax wherever its top-2 margin exceeds twice the tolerance. Returns how many
    positions were decided."""
    decided = 0
    for request, (tokens, logits) in enumerate(zip(outputs, theirs, strict=True)):
        best, argmax = logits.topk(2, dim=-1)
        clear = (best[:, 0] - best[:, 1]) > 2 * tolerance * logits.abs().max()
        wrong = clear & (argmax[:, 0] != torch.tensor(tokens))
        assert not wrong.any(), (
            f"request {request}: greedy token differs at output position {int(wrong.int().argmax())}"
        )
        decided += int(clear.sum())
    return decided
