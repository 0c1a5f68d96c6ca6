"""The jobs of the reproduction: random tokens with known sharing, shuffled."""

from __future__ import annotations

import numpy as np

import batchllm_ext as ext
from batchllm.estimate.simulate import SimulatedJob
from benchmarks.conversation_trace import Trace

VOCABULARY = 128_256  # of Llama 3


def job(tokens: np.ndarray, indptr: np.ndarray, output_tokens: np.ndarray, bound: int | None = None) -> SimulatedJob:
    """bound: the max_tokens of every request; None: the outputs' own lengths are the bounds."""
    bounds = output_tokens if bound is None else np.full_like(output_tokens, bound)
    return SimulatedJob(tokens=tokens, indptr=indptr, output_tokens=output_tokens, max_output_tokens=bounds)


def two_level(
    *, requests: int, degree: int, prefix: int, own: int, output: int | np.ndarray, bound: int | None = None
) -> SimulatedJob:
    """Groups of `degree` requests: `prefix` tokens of the group, then `own` tokens of the request."""
    rng = np.random.default_rng(requests + degree)
    tokens = np.empty((requests, prefix + own), np.int32)
    shared = rng.integers(0, VOCABULARY, (-(-requests // degree), prefix), np.int32)
    tokens[:, :prefix] = shared[rng.permutation(requests) // degree]
    tokens[:, prefix:] = rng.integers(0, VOCABULARY, (requests, own), np.int32)
    indptr = np.arange(requests + 1, dtype=np.int64) * (prefix + own)
    return job(tokens.reshape(-1), indptr, np.broadcast_to(output, requests).astype(np.int32), bound)


def two_kinds_of_groups(*, is_shuffled: bool) -> SimulatedJob:
    """3,200 requests that read long texts for short answers, then 3,200 that do the reverse; degree 16 both."""
    rng = np.random.default_rng(0)
    prompts: list[np.ndarray] = []
    outputs: list[int] = []
    for prefix, own, output in ((3600, 200, 20), (400, 200, 300)):
        for _ in range(200):
            shared = rng.integers(0, VOCABULARY, prefix, np.int32)
            for _ in range(16):
                prompts.append(np.concatenate([shared, rng.integers(0, VOCABULARY, own, np.int32)]))
                outputs.append(output)
    order = rng.permutation(len(prompts)) if is_shuffled else np.arange(len(prompts))
    return ragged([prompts[i] for i in order], np.array(outputs, np.int32)[order])


def three_level(instruction: int, seed: int) -> SimulatedJob:
    """A tree of random shape: instructions, documents under them, topics under these, requests under the topics."""
    rng = np.random.default_rng(seed)

    def text(low: int, high: int) -> np.ndarray:
        return rng.integers(0, VOCABULARY, rng.integers(low, high), np.int32)

    prompts = []
    for _ in range(rng.integers(4, 9)):
        instruction_text = text(instruction // 2, 3 * instruction // 2)
        for _ in range(rng.integers(4, 12)):
            document = text(200, 1500)
            for _ in range(rng.integers(2, 6)):
                topic = text(5, 50)
                for _ in range(rng.integers(2, 8)):
                    prompts.append(np.concatenate([instruction_text, document, topic, text(200, 1200)]))
    order = rng.permutation(len(prompts))
    return ragged([prompts[i] for i in order], np.full(len(prompts), 100, np.int32))


def ragged(prompts: list[np.ndarray], output_tokens: np.ndarray) -> SimulatedJob:
    indptr = np.zeros(len(prompts) + 1, np.int64)
    np.cumsum([len(prompt) for prompt in prompts], out=indptr[1:])
    return job(np.concatenate(prompts), indptr, output_tokens)


def log_normal_lengths(count: int, *, median: float, sigma: float, bound: int) -> np.ndarray:
    """int32 [count] from 1 to bound"""
    lengths = np.random.default_rng(count).lognormal(np.log(median), sigma, count)
    return np.clip(np.rint(lengths), 1, bound).astype(np.int32)


def of_trace(trace: Trace) -> SimulatedJob:
    """Every request may generate as many tokens as the longest answer of the trace has."""
    return job(trace.tokens, trace.indptr, trace.output_lengths, int(trace.output_lengths.max()))


def working_set_tokens(job: SimulatedJob) -> int:
    """KV tokens of all distinct prefixes and all outputs."""
    return ext.PrefixTrie(job.tokens, job.indptr).num_tokens + int(job.output_tokens.sum())
