"""`LLM`: a model, and jobs of prompts for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from batchllm.answers import PendingAnswer
from batchllm.engine.engine import Engine, Finished
from batchllm.engine.recorder import RunRecorder
from batchllm.loading import LoadedModel
from batchllm.models.config import ModelConfig
from batchllm.options import EngineOptions
from batchllm.outputs import JobProgress, RequestOutput
from batchllm.requests import Prompt, params_list, prompt_list
from batchllm.sampling.rules import LogitsRule
from batchllm.sampling_params import SamplingParams
from batchllm.tokenizer import Message

SECONDS_BETWEEN_PROGRESS = 0.1


class LLM:
    """A Hugging Face causal language model that answers whole jobs, computing each shared prefix once.

    model: a directory with config.json and safetensors, or a hub id.
    rules: of your own, for the logits of every request (batchllm.sampling.rules.LogitsRule).
    options: those of batchllm.options.EngineOptions, which says what each means: dtype, device, levels, page_size,
        kv_cache_tokens, max_batch_tokens, num_threads, seed, allow_special_tokens, generation_config.

    Raises FileNotFoundError or ValueError that names the file, the field, the tensor or the option at fault.
    """

    def __init__(self, model: str | Path, *, rules: Sequence[LogitsRule] = (), **options: Any) -> None:
        self._loaded = LoadedModel(model, EngineOptions(**options), rules)
        self._tokenizer = self._loaded.tokenizer
        self._num_jobs = 0
        self._waiting: dict[int, deque[Finished]] = {}  # of each live request of the engine: where its end is awaited
        self.stats: dict[str, Any] = {}

    @property
    def engine(self) -> Engine:
        """What runs the requests: add, step, abort."""
        return self._loaded.engine

    @property
    def directory(self) -> Path:
        return self._loaded.directory

    @property
    def config(self) -> ModelConfig:
        return self._loaded.config

    @property
    def options(self) -> EngineOptions:
        return self._loaded.options

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        """Fields of SamplingParams that the model's generation_config.json sets."""
        return self._loaded.sampling_defaults

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest context the model takes, prompt and output together."""
        return self.config.max_model_len

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and the KV cache."""
        return self.engine.model.dtype

    @property
    def device_choice(self) -> str:
        """The device that the model is on, and why: "cpu: asked for"."""
        return str(self._loaded.device_choice)

    def get_tokenizer(self) -> Any:
        """The model's Hugging Face tokenizer. Raises ValueError if it cannot be loaded."""
        return self._tokenizer.hugging_face()

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` and `chat` take where none are given."""
        return self._loaded.default_sampling_params()

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
        token_ids, texts = self._loaded.parse_prompts(items)
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
        """Token ids of each text, with the special tokens that the tokenizer adds to a prompt."""
        return self._tokenizer.encode(texts)

    def apply_chat_template(self, messages: Sequence[Message], **options: Any) -> list[int]:
        """Token ids of a conversation in the model's chat template, opened for the assistant's answer, unless that is
        to continue its last message."""
        is_opened = not options.get("continue_final_message")
        return self._tokenizer.encode_chat(messages, **{"add_generation_prompt": is_opened, **options})

    def check_chat_template(self) -> None:
        """Raises ValueError where the model's chat template can render no conversation at all."""
        self._tokenizer.check_chat_template()

    def check_request(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Raises ValueError, with the numbers, if this request could never run."""
        self._loaded.check_request(prompt_token_ids, params)

    def generate_as_completed(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        *,
        on_progress: Callable[[JobProgress], None] | None = None,
        recorder: RunRecorder | None = None,
    ) -> Iterator[tuple[int, RequestOutput]]:
        """Answers token-id prompts, yielding (index, output) as each finishes. Closing the iterator aborts the others.

        recorder: is told of the requests and of every step until the last answer.

        Raises ValueError, before anything runs, for a prompt that `check_request` refuses, naming its index.
        """
        for index, (ids, p) in enumerate(zip(prompts, params, strict=True)):
            try:
                self.check_request(ids, p)
            except ValueError as error:
                raise ValueError(f"prompt {index}: {error}") from None
        return self._answers(prompts, params, on_progress, recorder)

    def _answers(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        on_progress: Callable[[JobProgress], None] | None,
        recorder: RunRecorder | None,
    ) -> Iterator[tuple[int, RequestOutput]]:
        start = time.perf_counter()
        tokenize_s, self._tokenizer.encode_s = self._tokenizer.encode_s, 0.0  # since the last job
        detokenize_s = 0.0
        self._num_jobs += 1
        stream = f"{self.options.seed}/{self._num_jobs}"  # so that asking again gives other answers
        pending = [
            PendingAnswer(str(index), None, list(ids), p, self._tokenizer)
            for index, (ids, p) in enumerate(zip(prompts, params, strict=True))
        ]
        completion_of: dict[int, tuple[int, int]] = {}  # by request id: the prompt's index, the completion's
        ended: deque[Finished] = deque()
        next_progress_s = 0.0
        try:
            self.engine.recorder = recorder or self.engine.recorder
            ids = self.engine.add(
                [
                    self._loaded.engine_request(prompt, p, f"{stream}/{index}")
                    for index, (prompt, p) in enumerate(zip(prompts, params, strict=True))
                ]
            )
            completion_of = {i: (index, sample) for index, r in enumerate(ids) for sample, i in enumerate(r)}
            self._waiting |= dict.fromkeys(completion_of, ended)
            while completion_of:
                if not ended:
                    self._step()
                if on_progress and (ended or self.engine.elapsed_s >= next_progress_s):
                    next_progress_s = self.engine.elapsed_s + SECONDS_BETWEEN_PROGRESS
                    on_progress(self.engine.progress)
                while ended:
                    finished = ended.popleft()
                    index, sample = completion_of.pop(finished.request_id)
                    clock = time.perf_counter()
                    output = pending[index].add(sample, finished)
                    detokenize_s += time.perf_counter() - clock
                    if output is not None:
                        yield index, output
        finally:
            for request_id in completion_of:
                self._waiting.pop(request_id, None)
            self.engine.abort(list(completion_of))
            if recorder and self.engine.recorder is recorder:
                self.engine.recorder = None
        self.stats = self.engine.figures.as_dict()
        self.stats["seconds"] |= {
            "load": self._loaded.load_s + self._tokenizer.load_s,
            "tokenize": tokenize_s,
            "detokenize": detokenize_s,
            "total": time.perf_counter() - start + tokenize_s,
        }

    def _step(self) -> None:
        """A step for all jobs that are under way, each of which is told what ended of it."""
        try:
            step = self.engine.step()
        except BaseException:
            self._waiting.clear()  # the engine is empty
            raise
        if step is None:
            raise RuntimeError("the requests of this job have gone: a step of another one failed")
        for finished in step.finished:
            self._waiting.pop(finished.request_id).append(finished)

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

        answers = self.generate_as_completed(token_ids, params, on_progress=show)
        try:
            for index, output in answers:
                output.prompt = texts[index]
                results[index] = output
                bar.update(1)
        finally:
            answers.close()  # type: ignore[attr-defined]
            bar.close()
        return [output for output in results if output is not None]
