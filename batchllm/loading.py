"""Loads a model directory, or takes a model, and prepares its engine: shared by `LLM` and `AsyncLLM`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from batchllm.device.choice import (
    CPU,
    DeviceChoice,
    choose_device,
    choose_dtype,
    refusal_of_head_dim,
)
from batchllm.device.cpu_share import default_num_threads
from batchllm.device.kv_cache import affordable_kv_tokens, check_kv_tokens
from batchllm.device.ops import GpuOps
from batchllm.engine.engine import Engine
from batchllm.engine.engine_requests import EngineRequest
from batchllm.engine.runner import CpuRunner, Gpu, GpuRunner, Runner
from batchllm.models.backend import describe_model, load_model
from batchllm.models.config import GENERATION_CONFIG, resolve_model, sampling_defaults
from batchllm.models.description import ModelDescription
from batchllm.models.forward_pass import ForwardPass
from batchllm.options import EngineOptions
from batchllm.requests import Prompt, RequestLimits, parse_prompt
from batchllm.sampling.allowed_tokens import AllowedTokens
from batchllm.sampling.bad_words import BadWords
from batchllm.sampling.compile_grammar import GrammarCompiler
from batchllm.sampling.draw import stream_seed
from batchllm.sampling.grammar import Grammars
from batchllm.sampling.logit_bias import LogitBias
from batchllm.sampling.penalties import Penalties
from batchllm.sampling.rules import LogitsRule
from batchllm.sampling.stop_strings import StopStrings
from batchllm.sampling.stop_tokens import MinTokens, StopTokens
from batchllm.sampling_params import SamplingParams
from batchllm.text import printable
from batchllm.tokenizer import Tokenizer

NO_SEED = (0,)  # of a single completion that draws nothing
CHECKED_AT_ONCE = 4096  # prompts whose tokens are checked together


class LoadedModel:
    """A loaded model: its engine, and the requests it accepts."""

    def __init__(
        self,
        model: ForwardPass,
        config: ModelDescription,
        tokenizer: Tokenizer,
        eos_token_ids: tuple[int, ...],
        options: EngineOptions,
        device_choice: DeviceChoice,
        rules: Sequence[LogitsRule] = (),
    ) -> None:
        """eos_token_ids: tokens that end a sequence. `rules` come before those of the sampling parameters."""
        self.config, self.tokenizer, self.options, self.device_choice = config, tokenizer, options, device_choice
        self.sampling_defaults: dict[str, Any] = {}  # fields of SamplingParams
        self.load_s = 0.0
        self.eos_token_ids = eos_token_ids
        kv_cache_tokens = options.kv_cache_tokens
        kv_bytes_per_token = config.kv_elements_per_token * model.dtype.itemsize
        if kv_cache_tokens is None:
            kv_cache_tokens = max(affordable_kv_tokens(kv_bytes_per_token, model.device), options.page_size)
        else:
            check_kv_tokens(kv_cache_tokens, kv_bytes_per_token, model.device)
        self.limits = RequestLimits(
            config.vocab_size,
            config.max_model_len,
            options.page_size,
            kv_cache_tokens,
            eos_token_ids,
            config.most_pages(options.page_size, options.max_batch_tokens),
        )
        stop_tokens = StopTokens(eos_token_ids)
        self._grammars = GrammarCompiler(tokenizer.hugging_face, config.vocab_size)
        self.engine = Engine(
            model,
            _runner(model),
            [
                *rules,
                AllowedTokens(),
                BadWords(tokenizer.backend, config.vocab_size),
                MinTokens(stop_tokens),
                LogitBias(),
                Penalties(),
                stop_tokens,
                Grammars(self._grammars, stop_tokens),
                StopStrings(tokenizer.backend),
            ],
            levels=options.levels,
            page_size=options.page_size,
            kv_cache_tokens=kv_cache_tokens,
            max_batch_tokens=options.max_batch_tokens,
        )

    @classmethod
    def from_directory(cls, model: str | Path, options: EngineOptions, rules: Sequence[LogitsRule] = ()) -> LoadedModel:
        """Raises FileNotFoundError or ValueError that names the faulty file, field or tensor."""
        start = time.perf_counter()
        choice = choose_device(options.device, options.dtype, options.quantize)
        dtype = choose_dtype(options.dtype, options.quantize, choice.device)
        torch.set_num_threads(options.num_threads or default_num_threads(torch.get_num_threads()))
        directory = resolve_model(model)
        config = describe_model(directory, options.backend)
        defaults: dict[str, Any] = {}
        if options.generation_config == "auto":
            defaults, others = sampling_defaults(directory)
            if others:
                settings = printable(", ".join(f"{name}={value!r:.40}" for name, value in others.items()))
                message = f"{directory / GENERATION_CONFIG}: not supported, and not applied: {settings}"
                warnings.warn(message, stacklevel=3)
        tokenizer = Tokenizer(
            directory,
            config.max_model_len,
            allow_special_tokens=options.allow_special_tokens,
            reasoning_tags=options.reasoning_tags,
        )
        # Every token that a file of the model names as an end of sequence is one.
        known = [token for token in tokenizer.eos_token_ids if token < config.vocab_size]
        eos_token_ids = tuple(dict.fromkeys((*config.eos_token_ids, *known)))
        refusals = [why for kind in config.attention_kinds if (why := refusal_of_head_dim(kind.head_dim))]
        if config.backend != "native":
            refusals.insert(0, f"{config.architecture} runs by backend {config.backend!r}, on a CPU alone")
        if choice.device.type == "cuda" and refusals:
            if options.device == "cuda":
                raise ValueError(f"{directory}: {refusals[0]}")
            choice = DeviceChoice(CPU, refusals[0])
            dtype = choose_dtype(options.dtype, options.quantize, choice.device)
        forward_pass = load_model(config, directory, dtype, choice.device, options.quantize)
        forward_pass.pack_weights()
        loaded = cls(forward_pass, config, tokenizer, eos_token_ids, options, choice, rules)
        loaded.sampling_defaults = defaults
        loaded.load_s = time.perf_counter() - start
        return loaded

    @property
    def directory(self) -> Path:
        """The model's directory, or its GGUF file."""
        return self.tokenizer.directory

    def check_request(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Raises ValueError if this request could never run."""
        self.limits.check(prompt_token_ids, params)
        if params.structured_outputs is not None:
            self._grammars.compile(params.structured_outputs)

    def check_requests(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> None:
        """Raises ValueError as `check_request`, naming the index of the prompt at fault."""
        for begin in range(0, max(len(prompts), len(params)), CHECKED_AT_ONCE):
            part = slice(begin, begin + CHECKED_AT_ONCE)
            has_grammar = any(p.structured_outputs is not None for p in params[part])
            if not has_grammar and self.limits.are_met(prompts[part], params[part]):
                continue
            for index, (ids, p) in enumerate(zip(prompts[part], params[part], strict=True), start=begin):
                try:
                    self.check_request(ids, p)
                except ValueError as error:
                    raise ValueError(f"prompt {index}: {error}") from None

    def default_sampling_params(self) -> SamplingParams:
        return SamplingParams(**self.sampling_defaults)

    def engine_request(self, token_ids: Sequence[int], params: SamplingParams, stream: str) -> EngineRequest:
        """`stream` seeds a request without a seed, unless it is greedy and draws nothing. Raises ValueError if it needs
        a tokenizer that is missing."""
        if params.stop_strings or params.bad_words:
            self.tokenizer.backend()  # its faults are not the request's
        prompt = np.asarray(token_ids, np.int32)
        if params.greedy:
            seeds: Sequence[int] = NO_SEED if params.n == 1 else [0] * params.n
        else:
            seed = stream if params.seed is None else params.seed
            seeds = [stream_seed(seed, sample, prompt) for sample in range(params.n)]
        return EngineRequest(prompt, params, seeds, self.limits.max_output_tokens(len(prompt), params))

    def parse_prompts(self, prompts: Sequence[Prompt]) -> tuple[list[list[int]], list[str | None]]:
        """(token ids, texts); the text is None if the prompt came as token ids. Raises ValueError that names the
        prompt's index."""
        parsed = [parse_prompt(index, prompt) for index, prompt in enumerate(prompts)]
        texts = [text for text, _ in parsed]
        given = [(index, text) for index, text in enumerate(texts) if text is not None]
        encoded = iter(self._encode(given))
        return [next(encoded) if ids is None else ids for _, ids in parsed], texts

    def _encode(self, texts: list[tuple[int, str]]) -> list[list[int]]:
        """All at once; if that fails, one at a time, to name the prompt's index."""
        if not texts:
            return []
        self.tokenizer.hugging_face()  # its faults are not the prompt's
        try:
            return self.tokenizer.encode([text for _, text in texts])
        except ValueError:
            for index, text in texts:
                try:
                    self.tokenizer.encode([text])
                except ValueError as error:
                    raise ValueError(f"prompt {index}: {error}") from None
            raise


def _runner(model: ForwardPass) -> Runner:
    if model.device.type == "cuda":
        return GpuRunner(model, Gpu(), GpuOps())
    return CpuRunner(model, torch.get_num_threads())
