"""The good lines of a batch file as token ids: a job without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchllm.estimate.tokenized_job import TokenizedJob
from batchllm.jobs.line import BatchRequest, Conversation, LineError
from batchllm.jobs.reading import texts_of, tokenized
from batchllm.jobs.sources import Source
from batchllm.requests import RequestLimits
from batchllm.sampling.compile_grammar import GrammarCompiler
from batchllm.sampling_params import SamplingParams
from batchllm.tokenizer import Message, Tokenizer


class WeightlessModel:
    """What `run` needs of a model before anything runs, from config.json and the tokenizer beside it."""

    def __init__(self, directory: Path, limits: RequestLimits, *, allow_special_tokens: bool = False) -> None:
        self.limits = limits
        self.tokenizer = Tokenizer(directory, limits.max_model_len, allow_special_tokens=allow_special_tokens)
        self.grammars = GrammarCompiler(self.tokenizer.hugging_face, limits.vocab_size)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer.encode(texts)

    def check_chat_template(self) -> None:
        self.tokenizer.check_chat_template()

    def apply_chat_templates(self, conversations: Sequence[Sequence[Message]], **options: Any) -> list[list[int]]:
        return self.tokenizer.encode_chats(conversations, **{"add_generation_prompt": True, **options})

    def check_request(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        self.limits.check(prompt_token_ids, params)
        if params.structured_outputs is not None:
            self.grammars.compile(params.structured_outputs)

    def check_requests(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> None:
        for ids, p in zip(prompts, params, strict=True):
            self.check_request(ids, p)


def read_job(source: Source, model: WeightlessModel) -> tuple[TokenizedJob, list[LineError]]:
    """The lines that `run` would answer, and the errors of the others, by line.

    Raises ValueError if the lines need a tokenizer and there is none.
    """
    lines = list(source.requests())
    requests = [line for line in lines if isinstance(line, BatchRequest)]
    if not model.tokenizer.exists and (needs_tokenizer := [request for request in requests if has_text(request)]):
        raise ValueError(
            f"{model.tokenizer.directory}: no tokenizer beside config.json, and {len(needs_tokenizer):,} of "
            f"{len(requests):,} lines are text (first: line {needs_tokenizer[0].line}); only prompts of token ids "
            "can be planned without one"
        )
    errors: list[LineError] = []
    line_numbers: list[int] = []
    line_lengths: list[int] = []
    rows: list[NDArray[np.int32]] = []
    max_output_tokens: list[int] = []
    for line in tokenized(lines, model, seed=0):
        if isinstance(line, LineError):
            errors.append(line)
            continue
        request = line.request
        line_numbers.append(request.line)
        line_lengths.append(len(request.prompts) * request.params.n)
        for ids, p in zip(line.token_ids, line.params, strict=True):
            rows += [np.asarray(ids, np.int32)] * p.n
            max_output_tokens += [model.limits.max_output_tokens(len(ids), p)] * p.n
    job = TokenizedJob(
        line_numbers=np.array(line_numbers, np.int64),
        line_indptr=offsets(line_lengths),
        tokens=np.concatenate([np.empty(0, np.int32), *rows]),
        indptr=offsets([len(row) for row in rows]),
        max_output_tokens=np.array(max_output_tokens, np.int32),
    )
    return job, errors


def has_text(request: BatchRequest) -> bool:
    return any(isinstance(prompt, Conversation) or texts_of(prompt) for prompt in request.prompts)


def offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    indptr = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=indptr[1:])
    return indptr
