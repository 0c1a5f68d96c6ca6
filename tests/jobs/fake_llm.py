"""An `LLM` without a model, for tests of everything around it: a token is a byte of the prompt's UTF-8."""

from collections.abc import Callable, Iterator
from typing import Any

from batchllm.outputs import CompletionOutput, JobProgress, RequestOutput
from batchllm.sampling_params import SamplingParams


class FakeLLM:
    """Answers `<n> tokens` to every prompt, last prompt first, as a model with `max_model_len` would accept it."""

    max_model_len = 500
    device_choice = "cpu: asked for"
    backend = "native"

    def __init__(self, model: str = "fake", **options: Any) -> None:
        self.model, self.options = model, options
        self.stats: dict[str, Any] = {}
        self.sampling_defaults: dict[str, Any] = {}
        self.params: list[SamplingParams] = []  # of the last job
        self.after_each: Callable[[], None] = lambda: None  # called when the consumer asks for the next answer

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def check_chat_template(self) -> None:
        pass

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        return list("".join(f"<{m['role']}>{m['content']}" for m in messages).encode())

    def apply_chat_templates(self, conversations: list[list[dict[str, Any]]], **options: Any) -> list[list[int]]:
        return [self.apply_chat_template(messages, **options) for messages in conversations]

    def check_request(self, prompt_token_ids: list[int], params: SamplingParams) -> None:
        if len(prompt_token_ids) == 0:
            raise ValueError("the prompt is empty")
        if len(prompt_token_ids) >= self.max_model_len:
            raise ValueError(f"the prompt has {len(prompt_token_ids)} tokens, and the model takes {self.max_model_len}")
        if bad := [token for token in prompt_token_ids if not 0 <= token < 256]:
            raise ValueError(f"token {bad[0]}, but the vocabulary has 256 tokens")

    def check_requests(self, prompts: list[list[int]], params: list[SamplingParams]) -> None:
        for ids, p in zip(prompts, params, strict=True):
            self.check_request(ids, p)

    def generate_as_completed(
        self,
        prompts: list[list[int]],
        params: list[SamplingParams],
        *,
        on_progress: Callable[[JobProgress], None] | None = None,
        recorder: Any = None,
    ) -> Iterator[tuple[int, RequestOutput]]:
        self.check_requests(prompts, params)
        self.params = params
        num_requests = sum(p.n for p in params)
        prompt_tokens = sum(len(ids) * p.n for ids, p in zip(prompts, params, strict=True))
        finished = 0
        for index in reversed(range(len(prompts))):
            ids, n = prompts[index], params[index].n
            finished += n
            if on_progress:
                on_progress(JobProgress(num_requests, finished, prompt_tokens, 3, finished, 9, 0.5))
            completions = [
                CompletionOutput(i, f"{len(ids)} tokens, sample {i}", [1, 2], -1.0, "stop") for i in range(n)
            ]
            yield index, RequestOutput(str(index), None, list(ids), completions, True, (n - 1) * (len(ids) - 1))
            self.after_each()
        self.stats = {
            "num_requests": num_requests,
            "prompt_tokens": prompt_tokens,
            "computed_prompt_tokens": prompt_tokens - 3,
            "recomputed_tokens": 0,
            "output_tokens": 2 * num_requests,
            "steps": 7,
            "preemptions": 0,
            "peak_kv_tokens": 4096,
            "num_threads": 2,
            "cpu_s": 1.5,
            "cpu_wait_s": 0.25,
            "products": {"64x32 float32": "packed"},
            "seconds": {"plan": 0.1, "forward": 1.5, "total": 2.0},
        }
