"""`LLM`: a model, and jobs of prompts for it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import batchllm_ext as ext
from batchllm.device.kv_cache import affordable_kv_tokens
from batchllm.device.ops import GpuOps
from batchllm.engine.engine import Engine, Finished, Job
from batchllm.engine.runner import CpuRunner, Gpu, GpuRunner, Runner
from batchllm.models.config import GENERATION_CONFIG, ModelConfig, resolve_model, sampling_defaults
from batchllm.models.decoder import Model
from batchllm.models.weights import WeightReader
from batchllm.outputs import MODEL_LENGTH, CompletionOutput, JobProgress, RequestOutput
from batchllm.requests import Prompt, RequestLimits, params_list, parse_prompt, prompt_list
from batchllm.sampling.sampler import Sampler, stream_seed
from batchllm.sampling.stopping import StopStringWatcher, text_after
from batchllm.sampling_params import MAX_INT32, SamplingParams
from batchllm.text import printable
from batchllm.tokenizer import Message, Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEFAULT_MAX_BATCH_TOKENS = 1024
MIN_COMPUTE_CAPABILITY = (8, 0)  # what the kernels are compiled for


class LLM:
    """A Hugging Face causal language model that answers whole jobs, computing each shared prefix once.

    model: a directory with config.json and safetensors, or a hub id.
    dtype: "float32", "bfloat16", or "auto": bfloat16 where the CPU has bf16 dot products, else float32. A GPU takes
        bfloat16 only.
    device: "auto" and "cpu" are the CPU; "cuda" is torch's current GPU, for models of head_dim 64, 96, 128 or 256.
    levels: depth of prefix sharing: None any, 1 a single level, 0 none.
    page_size: tokens of a KV page.
    kv_cache_tokens: size of the KV pool; None takes what the job needs, within the memory available.
    max_batch_tokens: tokens of one forward pass that prefill may fill up to.
    num_threads: threads of torch and of the kernels (torch's setting is process-wide); None keeps torch's.
    seed: with the job's number and the prompt's index, seeds the requests that name no seed.
    allow_special_tokens: whether special tokens in the messages of a chat are taken as such; otherwise, but for the
        assistant's own turns, they are text.
    generation_config: "auto" takes the temperature, top_p, top_k and max_tokens of `generate` and `chat` without
        sampling_params from the model's generation_config.json, and warns of its settings that do not exist here;
        "vllm" takes SamplingParams' own defaults, as in vLLM. SamplingParams that are given stay as they are.

    Raises FileNotFoundError or ValueError that names the file, the field or the tensor at fault.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str | torch.dtype = "auto",
        device: str = "auto",
        levels: int | None = None,
        page_size: int = 16,
        kv_cache_tokens: int | None = None,
        max_batch_tokens: int | None = None,
        num_threads: int | None = None,
        seed: int = 0,
        allow_special_tokens: bool = False,
        generation_config: str = "auto",
    ) -> None:
        start = time.perf_counter()
        ext.cpu_isa()  # raises ValueError for an unknown BATCHLLM_ISA
        torch_device = _torch_device(device)
        torch_dtype = _torch_dtype(dtype, torch_device)
        if not (levels is None or (type(levels) is int and levels in (0, 1))):
            raise ValueError(f"levels: expected None, 0 or 1, got {levels!r}")
        _check_positive("page_size", page_size)
        for name, value in (
            ("max_batch_tokens", max_batch_tokens),
            ("num_threads", num_threads),
            ("kv_cache_tokens", kv_cache_tokens),
        ):
            if value is not None:
                _check_positive(name, value)
        if kv_cache_tokens is not None and kv_cache_tokens < page_size:
            raise ValueError(f"kv_cache_tokens: expected at least one page ({page_size} tokens), got {kv_cache_tokens}")
        if generation_config not in ("auto", "vllm"):
            raise ValueError(f"generation_config: expected 'auto' or 'vllm', got {generation_config!r}")
        if num_threads is not None:
            torch.set_num_threads(num_threads)

        self.directory = resolve_model(model)
        self.config = ModelConfig.from_directory(self.directory)
        self.sampling_defaults: dict[str, Any] = {}  # fields of SamplingParams
        if generation_config == "auto":
            self.sampling_defaults, others = sampling_defaults(self.directory)
            if others:
                settings = printable(", ".join(f"{name}={value!r:.40}" for name, value in others.items()))
                message = f"{self.directory / GENERATION_CONFIG}: not supported, and not applied: {settings}"
                warnings.warn(message, stacklevel=2)
        self._tokenizer = Tokenizer(
            self.directory, self.config.max_model_len, allow_special_tokens=allow_special_tokens
        )
        # What any of the model's files names as an end of sequence is one.
        known = [token for token in self._tokenizer.eos_token_ids if token < self.config.vocab_size]
        self._eos_token_ids = tuple(dict.fromkeys((*self.config.eos_token_ids, *known)))
        if type(seed) is not int:
            raise ValueError(f"seed: expected an integer, got {seed!r}")
        self.seed = seed
        if torch_device.type == "cuda" and self.config.head_dim not in ext.gpu_head_dims():
            raise ValueError(
                f"{self.directory}: head_dim is {self.config.head_dim}, and attention on a GPU is compiled for "
                f"{', '.join(map(str, ext.gpu_head_dims()))}"
            )
        with WeightReader(self.directory, torch_dtype, torch_device) as reader:
            loaded = Model(self.config, reader)
        loaded.pack_weights()
        if kv_cache_tokens is None:
            kv_cache_tokens = max(affordable_kv_tokens(self.config, torch_dtype, torch_device), page_size)
        self._limits = RequestLimits(
            self.config.vocab_size, self.config.max_model_len, page_size, kv_cache_tokens, self._eos_token_ids
        )
        self._num_jobs = 0
        self._engine = Engine(
            model=loaded,
            runner=_runner(loaded),
            levels=levels,
            page_size=page_size,
            kv_cache_tokens=kv_cache_tokens,
            max_batch_tokens=max_batch_tokens or DEFAULT_MAX_BATCH_TOKENS,
        )
        self._load_s = time.perf_counter() - start
        self.stats: dict[str, Any] = {}

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest context the model takes, prompt and output together."""
        return self.config.max_model_len

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and the KV cache."""
        return self._engine.model.dtype

    def get_tokenizer(self) -> Any:
        """The model's Hugging Face tokenizer. Raises ValueError if it cannot be loaded."""
        return self._tokenizer.hugging_face()

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` and `chat` take where none are given."""
        return SamplingParams(**self.sampling_defaults)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
    ) -> list[RequestOutput]:
        """Answers every prompt; the outputs are in the order of the prompts.

        prompts: text, token ids, {"prompt": text} or {"prompt_token_ids": ids}, or a list of these.
        sampling_params: one for all, or one for each prompt; None takes `get_default_sampling_params`.
        use_tqdm: show a progress bar; a callable is used in tqdm's place.

        Raises ValueError, before anything runs, that names the index of the prompt at fault.
        """
        items = prompt_list(prompts)
        params = params_list(self._or_default(sampling_params), len(items))
        token_ids, texts = self._parse_prompts(items)
        return self._generate(token_ids, texts, params, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """`generate` for one conversation or a list of them, each rendered with the model's chat template.

        template_options: those of transformers' `apply_chat_template` (chat_template, add_generation_prompt, tools,
            documents, continue_final_message), and variables of the template (enable_thinking), which may also stand
            in chat_template_kwargs. A template runs in a process of its own, for 5 s and in 1 GiB at most.

        Raises ValueError that names the conversation, before anything runs.
        """
        is_one = len(messages) > 0 and isinstance(messages[0], dict)
        conversations: list[Any] = [messages] if is_one else list(messages)
        params = params_list(self._or_default(sampling_params), len(conversations))
        token_ids = []
        for index, conversation in enumerate(conversations):
            try:
                token_ids.append(self.apply_chat_template(conversation, **template_options))
            except ValueError as error:
                raise ValueError(f"conversation {index}: {error}") from None
        return self._generate(token_ids, [None] * len(token_ids), params, use_tqdm)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, with the special tokens that the tokenizer adds to a prompt.

        Raises ValueError for a text so long that no number of tokens the model takes can hold it.
        """
        return self._tokenizer.encode(texts)

    def apply_chat_template(self, messages: Sequence[Message], **options: Any) -> list[int]:
        """Token ids of a conversation in the model's chat template, opened for the assistant's answer."""
        return self._tokenizer.encode_chat(messages, **{"add_generation_prompt": True, **options})

    def check_chat_template(self) -> None:
        """Raises ValueError where the model's chat template can render no conversation at all."""
        self._tokenizer.check_chat_template()

    def check_request(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Raises ValueError, with the numbers, if this request could never run."""
        self._limits.check(prompt_token_ids, params)

    def generate_as_completed(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        *,
        on_progress: Callable[[JobProgress], None] | None = None,
    ) -> Iterator[tuple[int, RequestOutput]]:
        """Answers token-id prompts, yielding (index, output) as each finishes.

        Raises ValueError, before anything runs, for a prompt that `check_request` refuses, naming its index.
        """
        for index, (ids, p) in enumerate(zip(prompts, params, strict=True)):
            try:
                self.check_request(ids, p)
            except ValueError as error:
                raise ValueError(f"prompt {index}: {error}") from None
        return self._run(prompts, params, on_progress)

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        on_progress: Callable[[JobProgress], None] | None,
    ) -> Iterator[tuple[int, RequestOutput]]:
        start = time.perf_counter()
        tokenize_s, self._tokenizer.encode_s = self._tokenizer.encode_s, 0.0  # since the last job
        detokenize_s = 0.0
        # Completion number `sample` of prompt `index` is one request of the engine.
        completions = [(index, sample) for index, p in enumerate(params) for sample in range(p.n)]
        job = self._job(prompts, params, completions)
        done: dict[int, list[CompletionOutput]] = {}
        computed = [0] * len(prompts)  # prompt tokens computed for all completions of a prompt
        for finished in self._engine.run(job, on_progress):
            index, sample = completions[finished.request_id]
            clock = time.perf_counter()
            ids = list(prompts[index])
            completion = self._completion(finished, ids, sample, params[index], job.stop_strings)
            done.setdefault(index, []).append(completion)
            detokenize_s += time.perf_counter() - clock
            computed[index] += len(ids) - finished.num_cached_tokens
            if len(done[index]) == params[index].n:
                outputs = sorted(done.pop(index), key=lambda output: output.index)
                num_cached_tokens = max(len(ids) - computed[index], 0)
                yield index, RequestOutput(str(index), None, ids, outputs, True, num_cached_tokens)
        self.stats = self._engine.stats
        self.stats["seconds"] |= {
            "load": self._load_s,
            "tokenize": tokenize_s,
            "detokenize": detokenize_s,
            "total": time.perf_counter() - start + tokenize_s,
        }

    def _job(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], completions: list[tuple[int, int]]
    ) -> Job:
        self._num_jobs += 1
        arrays = [np.asarray(prompt, np.int32) for prompt in prompts]
        rows = [arrays[index] for index, _ in completions]
        row_params = [params[index] for index, _ in completions]
        unnamed = f"{self.seed}/{self._num_jobs}/{{}}"  # so that asking again gives other answers
        seeds = [
            stream_seed(
                unnamed.format(index) if params[index].seed is None else str(params[index].seed), sample, arrays[index]
            )
            for index, sample in completions
        ]
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=indptr[1:])
        max_output_tokens = [
            self._limits.max_output_tokens(len(row), p) for row, p in zip(rows, row_params, strict=True)
        ]
        known = [
            bound if p.ends_only_at_max_tokens else 0 for bound, p in zip(max_output_tokens, row_params, strict=True)
        ]
        needs_text = any(p.stop_strings for p in params)
        return Job(
            tokens=np.concatenate([np.empty(0, np.int32), *rows]),
            indptr=indptr,
            max_output_tokens=np.array(max_output_tokens, np.int32),
            expected_output_tokens=np.array(known, np.int32),
            sampler=Sampler.create(row_params, np.array(seeds, np.uint64), self._eos_token_ids),
            stop_strings=StopStringWatcher(
                row_params,
                self._tokenizer.backend() if needs_text else None,
                [prompts[index] for index, _ in completions],
            ),
        )

    def _completion(
        self,
        finished: Finished,
        prompt: Sequence[int],
        sample: int,
        params: SamplingParams,
        stop_strings: StopStringWatcher,
    ) -> CompletionOutput:
        """Its finish_reason is "error", with what failed as its stop_reason, where its tokens cannot be decoded."""
        last = finished.token_ids[-1]
        finish_reason = "stop" if finished.stopped else "length"
        stop_reason: int | str | None = None
        try:
            if match := stop_strings.forget(finished.request_id):
                text, stop_reason = match.text, match.stop
            else:
                hide_last = finished.stopped and not params.include_stop_str_in_output
                decode = partial(self._tokenizer.decode, params=params)
                text = text_after(decode, prompt, finished.token_ids[: -1 if hide_last else None])
                if finished.stopped and (params.ignore_eos or last not in self._eos_token_ids):
                    stop_reason = last
                elif not finished.stopped and len(finished.token_ids) != params.max_tokens:
                    stop_reason = MODEL_LENGTH
        except ValueError as error:
            text, finish_reason, stop_reason = "", "error", str(error)
        return CompletionOutput(
            index=sample,
            text=text,
            token_ids=finished.token_ids,
            cumulative_logprob=finished.cumulative_logprob,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
        )

    def _or_default(
        self, sampling_params: SamplingParams | Sequence[SamplingParams] | None
    ) -> SamplingParams | Sequence[SamplingParams]:
        return self.get_default_sampling_params() if sampling_params is None else sampling_params

    def _generate(
        self,
        token_ids: list[list[int]],
        texts: Sequence[str | None],
        params: list[SamplingParams],
        use_tqdm: bool | Callable[..., Any],
    ) -> list[RequestOutput]:
        results: list[RequestOutput | None] = [None] * len(token_ids)
        make_bar = use_tqdm if callable(use_tqdm) else tqdm
        bar = make_bar(total=len(token_ids), desc="Processed prompts", disable=not use_tqdm, dynamic_ncols=True)

        def show(progress: JobProgress) -> None:
            rate = progress.output_tokens / max(progress.elapsed_s, 1e-9)
            bar.set_postfix_str(f"{rate:.1f} output toks/s, {progress.saved_prompt_tokens} prompt tokens saved")

        try:
            for index, output in self.generate_as_completed(token_ids, params, on_progress=show):
                output.prompt = texts[index]
                results[index] = output
                bar.update(1)
        finally:
            bar.close()
        return [output for output in results if output is not None]

    def _parse_prompts(self, prompts: Sequence[Prompt]) -> tuple[list[list[int]], list[str | None]]:
        """(token ids, texts); the text is None where the prompt came as token ids."""
        parsed = [parse_prompt(index, prompt) for index, prompt in enumerate(prompts)]
        texts = [text for text, _ in parsed]
        given = [(index, text) for index, text in enumerate(texts) if text is not None]
        encoded = iter(self._encode(given))
        return [next(encoded) if ids is None else ids for _, ids in parsed], texts

    def _encode(self, texts: list[tuple[int, str]]) -> list[list[int]]:
        """All at once; one at a time where that fails, to name the prompt's index."""
        if not texts:
            return []
        self.get_tokenizer()  # what is wrong with it is no prompt's fault
        try:
            return self.tokenize([text for _, text in texts])
        except ValueError:
            for index, text in texts:
                try:
                    self.tokenize([text])
                except ValueError as error:
                    raise ValueError(f"prompt {index}: {error}") from None
            raise


def _torch_device(device: str) -> torch.device:
    if device in ("auto", "cpu"):
        return torch.device("cpu")
    if device != "cuda":
        raise ValueError(f"device: expected 'auto', 'cpu' or 'cuda', got {device!r}")
    if not torch.cuda.is_available():
        raise ValueError(f"device: 'cuda' needs a GPU, and torch {torch.__version__} finds none")
    if not ext.has_cuda():
        raise ValueError("device: 'cuda' needs batchllm_ext built with BATCHLLM_CUDA=ON")
    if (capability := torch.cuda.get_device_capability()) < MIN_COMPUTE_CAPABILITY:
        raise ValueError(f"device: 'cuda' needs a GPU of compute capability 8.0 or later, got {capability}")
    return torch.device("cuda", torch.cuda.current_device())


def _runner(model: Model) -> Runner:
    if model.device.type == "cuda":
        return GpuRunner(model, Gpu(), GpuOps())
    return CpuRunner(model, torch.get_num_threads())


def _torch_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        if dtype not in ("auto", "bfloat16", torch.bfloat16):
            raise ValueError(f"dtype: expected 'auto' or 'bfloat16' on a GPU, got {dtype!r}")
        return torch.bfloat16
    if dtype == "auto":
        return torch.bfloat16 if _cpu_has_bf16_dot() else torch.float32
    for name, torch_dtype in DTYPES.items():
        if dtype in (name, torch_dtype):
            return torch_dtype
    raise ValueError(f"dtype: expected 'auto', {', '.join(map(repr, DTYPES))}, got {dtype!r}")


def _cpu_has_bf16_dot() -> bool:
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _check_positive(name: str, value: int) -> None:
    if type(value) is not int or not 1 <= value <= MAX_INT32:
        raise ValueError(f"{name}: expected an integer from 1 to {MAX_INT32}, got {value!r}")
