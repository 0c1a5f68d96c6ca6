"""Turns finished requests into outputs: completions with their text, grouped by prompt."""

from __future__ import annotations

from collections.abc import Sequence

from batchllm.engine.engine_requests import Finished
from batchllm.outputs import MODEL_LENGTH, CompletionOutput, Logprob, RequestOutput
from batchllm.reasoning import ReasoningTags, split_reasoning
from batchllm.sampling.growing_text import text_after
from batchllm.sampling_params import SamplingParams
from batchllm.tokenizer import Tokenizer

NUM_TOKENS_AFTER_TAG = 8  # at most, of white space, if a prompt begins the reasoning


class PendingAnswer:
    """A prompt whose n completions are not all finished."""

    def __init__(
        self, request_id: str, prompt: str | None, token_ids: list[int], params: SamplingParams, tokenizer: Tokenizer
    ) -> None:
        self.request_id, self.prompt, self.token_ids, self.params = request_id, prompt, token_ids, params
        self.outputs: list[CompletionOutput] = []  # in the order in which they ended
        self._tokenizer = tokenizer
        self._num_computed = 0  # prompt tokens, for all completions
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None

    def add(self, sample: int, finished: Finished) -> RequestOutput | None:
        """Completion number `sample` ended. Returns the answer with the last one."""
        self.outputs.append(self.completion(sample, finished))
        self._num_computed += len(self.token_ids) - finished.num_cached_tokens
        if sample == 0 and self.params.prompt_logprobs is not None:
            scored = finished.prompt_logprobs or []
            self._add_texts(scored)
            self._prompt_logprobs = [*[None] * (len(self.token_ids) - len(scored)), *scored]
        return self.answer(finished=True) if len(self.outputs) == self.params.n else None

    def answer(self, *, finished: bool, unfinished: list[CompletionOutput] | None = None) -> RequestOutput:
        outputs = [*self.outputs, *(unfinished or ())]
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.token_ids,
            outputs=outputs if len(outputs) == 1 else sorted(outputs, key=lambda output: output.index),
            finished=finished,
            num_cached_tokens=max(len(self.token_ids) - self._num_computed, 0) if finished else 0,
            prompt_logprobs=self._prompt_logprobs,
        )

    def decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, self.params)

    def completion(self, sample: int, finished: Finished) -> CompletionOutput:
        """If its tokens cannot be decoded, its finish_reason is "error" and its stop_reason says what failed."""
        end, token_ids = finished.end, finished.token_ids
        finish_reason = "length" if end is None else "stop"
        stop_reason: int | str | None = None
        reasoning: str | None = None
        content: str | None = ""
        try:
            if end is not None and end.error is not None:
                raise ValueError(end.error)
            if end is not None and end.text is not None:
                text = end.text
            else:
                hides_last = end is not None and end.hides_last_token
                text = text_after(self.decode, self.token_ids, token_ids[:-1] if hides_last else token_ids)
            reasoning, content = self._split(text)
            if end is not None:
                stop_reason = end.reason
            elif len(token_ids) != self.params.max_tokens:
                stop_reason = MODEL_LENGTH
        except ValueError as error:
            text, finish_reason, stop_reason = "", "error", str(error)
        if finished.logprobs:
            self._add_texts(finished.logprobs)
        return CompletionOutput(
            index=sample,
            text=text,
            token_ids=token_ids,
            cumulative_logprob=finished.cumulative_logprob,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            logprobs=finished.logprobs,
            reasoning_content=reasoning,
            content=content,
        )

    def _split(self, text: str) -> tuple[str | None, str | None]:
        """The reasoning in a text, and the answer."""
        tags = self._tokenizer.reasoning_tags
        return (None, text) if tags is None else split_reasoning(text, tags, is_open=self._ends_in_reasoning(tags))

    def _ends_in_reasoning(self, tags: ReasoningTags) -> bool:
        """Whether the prompt has already begun the reasoning."""
        end = self.token_ids[-len(tags.begin.encode()) - NUM_TOKENS_AFTER_TAG :]
        return self._tokenizer.decode(end, SamplingParams(skip_special_tokens=False)).rstrip().endswith(tags.begin)

    def _add_texts(self, entries: Sequence[dict[int, Logprob] | None]) -> None:
        if self._tokenizer.exists:
            for token_id, logprob in (item for entry in entries if entry for item in entry.items()):
                logprob.decoded_token = self._tokenizer.token_text(token_id)
