"""`LLM`: a model that answers jobs of prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from batchllm.answers import PendingAnswer
from batchllm.continuations import (
    Continuation,
    continuation_of,
    continuations_of,
    perplexity,
    probabilities,
    scoring_params,
    text_after_first_token,
)
from batchllm.driver import JobDriver
from batchllm.engine.engine import Engine
from batchllm.engine.recorder import RunRecorder
from batchllm.loading import LoadedModel
from batchllm.models.description import ModelDescription
from batchllm.options import EngineOptions
from batchllm.outputs import Choice, ContinuationScore, EchoedPrompt, JobProgress, RequestOutput
from batchllm.requests import Prompt, params_list, prompt_list
from batchllm.sampling.rules import LogitsRule
from batchllm.sampling_params import SamplingParams
from batchllm.scoring import ScoringJob
from batchllm.tokenizer import Message


class LLM:
    """A Hugging Face causal language model that answers whole jobs, computing each shared prefix once.

    model: a directory with config.json and safetensors, a hub id, or a .gguf file.
    rules: your own, for the logits of every request (batchllm.sampling.rules.LogitsRule).
    options: the fields of batchllm.options.EngineOptions, which explains them: dtype, quantize, device, backend,
        levels, page_size, kv_cache_tokens, max_batch_tokens, num_threads, seed, allow_special_tokens,
        generation_config.

    Raises FileNotFoundError or ValueError that names the faulty file, field, tensor or option.
    """

    def __init__(self, model: str | Path, *, rules: Sequence[LogitsRule] = (), **options: Any) -> None:
        self._take(LoadedModel.from_directory(model, EngineOptions(**options), rules))

    @classmethod
    def on(cls, loaded: LoadedModel) -> LLM:
        """An LLM on parts that are already loaded."""
        llm = cls.__new__(cls)
        llm._take(loaded)
        return llm

    def _take(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._tokenizer = self._loaded.tokenizer
        self._num_jobs = 0
        self._driver = JobDriver(self._loaded.engine)
        self.stats: dict[str, Any] = {}

    @property
    def engine(self) -> Engine:
        """The engine that runs the requests: add, step, abort."""
        return self._loaded.engine

    @property
    def directory(self) -> Path:
        """The model's directory, or its .gguf file."""
        return self._loaded.directory

    @property
    def config(self) -> ModelDescription:
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
        """Tokens of the model's longest context, prompt and output together."""
        return self.config.max_model_len

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and the KV cache."""
        return self.engine.model.dtype

    @property
    def device_choice(self) -> str:
        """The device that the model is on, and why: "cpu: asked for"."""
        return str(self._loaded.device_choice)

    @property
    def backend(self) -> str:
        """What runs the model: "native" or "transformers"."""
        return self.config.backend

    def get_tokenizer(self) -> Any:
        """The model's Hugging Face tokenizer. Raises ValueError if it cannot be loaded."""
        return self._tokenizer.hugging_face()

    def get_default_sampling_params(self) -> SamplingParams:
        """The sampling parameters of `generate` and `chat` if none are given."""
        return self._loaded.default_sampling_params()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
    ) -> list[RequestOutput]:
        """Answers every prompt. Outputs are in the order of the prompts.

        prompts: text, token ids, {"prompt": text} or {"prompt_token_ids": ids}, or a list of these.
        sampling_params: one for all, or one for each prompt; by default `get_default_sampling_params()`.
        use_tqdm: shows a progress bar; a callable replaces tqdm.

        Raises ValueError, before anything runs, that names the index of the faulty prompt.
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
            documents, continue_final_message), and variables of the template (enable_thinking), which may also be
            in chat_template_kwargs. A template runs in a separate process, within 5 s and 1 GiB.

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

    def score(
        self,
        prompts: Prompt | Sequence[Prompt],
        continuations: Sequence[str | list[int]] | Sequence[Sequence[str | list[int]]],
        *,
        use_tqdm: bool | Callable[..., Any] = False,
    ) -> list[list[ContinuationScore]]:
        """How likely each continuation is after its prompt: for each prompt a score for each of its continuations.

        continuations: one list (of texts or token ids) for every prompt, or a list for each. Prompt and continuation
            are tokenized as one text, and scored from the first token that differs from the prompt's. After a prompt
            of token ids, a continuation is encoded by itself.

        Nothing is decoded. Prompts that share a prefix share its computation, and continuations that differ only in
        their last token are one request.

        Raises ValueError, before anything runs, that names the faulty prompt and continuation.
        """
        items = prompt_list(prompts)
        token_ids, texts = self._loaded.parse_prompts(items)
        lists = continuations_of(continuations, len(items))
        continued: list[Continuation] = []
        for index, (ids, text, mine) in enumerate(zip(token_ids, texts, lists, strict=True)):
            try:
                wholes = self._continued(ids, text, mine)
            except ValueError as error:
                raise ValueError(f"prompt {index}: {error}") from None
            for at, whole in enumerate(wholes):
                try:
                    continued.append(continuation_of(ids, whole))
                    self._check_continuation(continued[-1])
                except ValueError as error:
                    raise ValueError(f"prompt {index}: continuation {at}: {error}") from None
        scores = iter(self._scores(continued, use_tqdm))
        return [[next(scores) for _ in mine] for mine in lists]

    def choose(
        self,
        prompts: Prompt | Sequence[Prompt],
        choices: Sequence[str | list[int]] | Sequence[Sequence[str | list[int]]],
        *,
        per_token: bool = False,
        use_tqdm: bool | Callable[..., Any] = False,
    ) -> list[Choice]:
        """For each prompt the likeliest of its choices, and the probability of each, given that it is one of them.

        choices: as the continuations of `score`, with the same errors. per_token: compares the mean log-probability of
            a choice's tokens, so that long choices are not at a disadvantage.
        """
        chosen = []
        for scores in self.score(prompts, choices, use_tqdm=use_tqdm):
            logprobs = [score.mean_logprob if per_token else score.logprob for score in scores]
            chosen.append(Choice(logprobs.index(max(logprobs)), probabilities(logprobs), scores))
        return chosen

    def perplexity(
        self, texts: Prompt | Sequence[Prompt], *, use_tqdm: bool | Callable[..., Any] = False
    ) -> list[float]:
        """For each text, exp of the mean negative log-probability of its tokens except the first.

        Raises ValueError that names a text of fewer than two tokens or more than the model takes.
        """
        token_ids, _ = self._loaded.parse_prompts(prompt_list(texts))
        texts_after_first: list[Continuation] = []
        for index, ids in enumerate(token_ids):
            try:
                texts_after_first.append(text_after_first_token(ids))
                self._check_continuation(texts_after_first[-1])
            except ValueError as error:
                raise ValueError(f"prompt {index}: {error}") from None
        return [perplexity(score.mean_logprob) for score in self._scores(texts_after_first, use_tqdm)]

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, with the special tokens that the tokenizer adds to a prompt."""
        return self._tokenizer.encode(texts)

    def echo(self, prompt_token_ids: list[int], params: SamplingParams) -> EchoedPrompt:
        """The text of a prompt's tokens, as an answer would show them. Raises ValueError where they have none."""
        first_token = self._tokenizer.token_text(prompt_token_ids[0]) if self._tokenizer.exists else None
        return EchoedPrompt(self._tokenizer.decode(prompt_token_ids, params), first_token)

    def apply_chat_template(self, messages: Sequence[Message], **options: Any) -> list[int]:
        """Token ids of a conversation in the model's chat template, opened for the assistant's answer unless the last
        message is to be continued."""
        [token_ids] = self.apply_chat_templates([messages], **options)
        return token_ids

    def apply_chat_templates(self, conversations: Sequence[Sequence[Message]], **options: Any) -> list[list[int]]:
        """`apply_chat_template` for several conversations at once; its error does not say which one is at fault."""
        is_opened = not options.get("continue_final_message")
        return self._tokenizer.encode_chats(conversations, **{"add_generation_prompt": is_opened, **options})

    def check_chat_template(self) -> None:
        """Raises ValueError if the model's chat template can render no conversation at all."""
        self._tokenizer.check_chat_template()

    def check_request(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Raises ValueError, with the numbers, if this request could never run."""
        self._loaded.check_request(prompt_token_ids, params)

    def check_requests(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> None:
        """`check_request` for each of them, cheap if all are good. The error names the prompt's index."""
        self._loaded.check_requests(prompts, params)

    def generate_as_completed(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        *,
        on_progress: Callable[[JobProgress], None] | None = None,
        recorder: RunRecorder | None = None,
    ) -> Iterator[tuple[int, RequestOutput]]:
        """Answers prompts of token ids, yielding (index, output) as each finishes. Closing the iterator aborts the
        rest.

        recorder: is told about the requests and every step until the last answer.

        Raises ValueError, before anything runs, for a prompt that `check_request` refuses, naming its index.
        """
        self._loaded.check_requests(prompts, params)
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
        stream = f"{self.options.seed}/{self._num_jobs}"  # so that asking again gives different answers
        pending: dict[int, PendingAnswer] = {}  # with at least one finished completion
        requests = (
            self._loaded.engine_request(prompt, p, f"{stream}/{index}")
            for index, (prompt, p) in enumerate(zip(prompts, params, strict=True))
        )
        with closing(self._driver.run(requests, on_progress, recorder)) as finished_requests:
            for index, sample, finished in finished_requests:
                clock = time.perf_counter()
                if index not in pending:
                    ids = np.asarray(prompts[index]).tolist()
                    pending[index] = PendingAnswer(str(index), None, ids, params[index], self._tokenizer)
                output = pending[index].add(sample, finished)
                detokenize_s += time.perf_counter() - clock
                if output is not None:
                    del pending[index]
                    yield index, output
        self.stats = self.engine.figures.as_dict()
        self.stats["seconds"] |= {
            "load": self._loaded.load_s + self._tokenizer.load_s,
            "tokenize": tokenize_s,
            "detokenize": detokenize_s,
            "total": time.perf_counter() - start + tokenize_s,
        }

    def _continued(
        self, prompt_token_ids: list[int], text: str | None, continuations: list[str | list[int]]
    ) -> list[list[int]]:
        """The tokens of a prompt with each of its continuations."""
        words = [continuation for continuation in continuations if isinstance(continuation, str)]
        if text is not None:
            encoded = iter(self.tokenize([text + word for word in words]) if words else [])
        else:
            parts = self._tokenizer.encode(words, add_special_tokens=False) if words else []
            encoded = iter([*prompt_token_ids, *part] for part in parts)
        return [
            next(encoded) if isinstance(continuation, str) else [*prompt_token_ids, *map(int, continuation)]
            for continuation in continuations
        ]

    def _check_continuation(self, continuation: Continuation) -> None:
        *before, last = continuation.token_ids
        self._loaded.limits.check(before, scoring_params(continuation.begin, [last]))

    def _scores(
        self, continuations: Sequence[Continuation], use_tqdm: bool | Callable[..., Any]
    ) -> list[ContinuationScore]:
        job = ScoringJob(continuations)
        scores: dict[int, ContinuationScore] = {}
        with closing(_progress_bar("Scored requests", len(job.requests), use_tqdm)) as bar:
            for number, _, finished in self._driver.run(job.requests):
                scores |= job.scores(number, finished)
                bar.update(1)
        self.stats = self.engine.figures.as_dict()
        return [scores[place] for place in range(len(continuations))]

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
        bar = _progress_bar("Processed prompts", len(token_ids), use_tqdm)

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


def _progress_bar(name: str, total: int, use_tqdm: bool | Callable[..., Any]) -> Any:
    make = use_tqdm if callable(use_tqdm) else tqdm
    return make(total=total, desc=name, disable=not use_tqdm, dynamic_ncols=True)
