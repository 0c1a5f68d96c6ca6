"""The good lines of a batch file as token ids: a job without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchllm.estimate.tokenized_job import TokenizedJob
from batchllm.jobs.openai_batch import BatchRequest, LineError
from batchllm.jobs.run import read_requests, tokenize
from batchllm.requests import RequestLimits
from batchllm.sampling.compile_grammar import GrammarCompiler
from batchllm.sampling_params import SamplingParams
from batchllm.tokenizer import Message, Tokenizer


class WeightlessModel:
    """What `run` asks of a model before anything runs, answered from config.json and the tokenizer beside it."""

    def __init__(self, directory: Path, limits: RequestLimits) -> None:
        self.limits = limits
        self.tokenizer = Tokenizer(directory, limits.max_model_len)
        self.grammars = GrammarCompiler(self.tokenizer.hugging_face, limits.vocab_size)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer.encode(texts)

    def apply_chat_template(self, messages: Sequence[Message], **options: Any) -> list[int]:
        return self.tokenizer.encode_chat(messages, **{"add_generation_prompt": True, **options})

    def check_request(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        self.limits.check(prompt_token_ids, params)
        if params.structured_outputs is not None:
            self.grammars.compile(params.structured_outputs)


def read_job(path: Path, model: WeightlessModel, *, chat_max_tokens: int) -> tuple[TokenizedJob, list[LineError]]:
    """The lines that `run` would answer, and the errors of the others, by line.

    Raises ValueError where the lines need a tokenizer and there is none.
    """
    requests, errors = read_requests(path, chat_max_tokens)
    if not model.tokenizer.exists and (needs_tokenizer := [request for request in requests if has_text(request)]):
        raise ValueError(
            f"{model.tokenizer.directory}: no tokenizer beside config.json, and {len(needs_tokenizer):,} of "
            f"{len(requests):,} lines are text (first: line {needs_tokenizer[0].line}); only prompts of token ids "
            "can be planned without one"
        )
    if any(request.is_chat for request in requests):
        model.tokenizer.check_chat_template()
    line_numbers: list[int] = []
    line_lengths: list[int] = []
    rows: list[NDArray[np.int32]] = []
    max_output_tokens: list[int] = []
    for request in requests:
        try:
            prompts, params = tokenize(model, request, seed=0)
        except LineError as error:
            errors.append(error)
            continue
        line_numbers.append(request.line)
        line_lengths.append(len(prompts) * request.params.n)
        for ids, p in zip(prompts, params, strict=True):
            rows += [np.asarray(ids, np.int32)] * p.n
            max_output_tokens += [model.limits.max_output_tokens(len(ids), p)] * p.n
    job = TokenizedJob(
        line_numbers=np.array(line_numbers, np.int64),
        line_indptr=offsets(line_lengths),
        tokens=np.concatenate([np.empty(0, np.int32), *rows]),
        indptr=offsets([len(row) for row in rows]),
        max_output_tokens=np.array(max_output_tokens, np.int32),
    )
    return job, sorted(errors, key=lambda error: error.line or 0)


def has_text(request: BatchRequest) -> bool:
    return not all(isinstance(prompt, list) for prompt in request.prompts)


def offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    indptr = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=indptr[1:])
    return indptr
