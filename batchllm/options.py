"""The options of an engine and their defaults, for `LLM`, `AsyncLLM`, the command line and estimates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from batchllm.sampling_params import MAX_INT32

# What one more shared segment costs each of its readers, in prompt tokens (docs/design/planner.md, "Segments").
READER_COST_TOKENS = 2.0
DEFAULT_MAX_BATCH_TOKENS = 1024
QUANTIZATIONS = ("int8",)  # for weights and activations
BACKENDS = ("auto", "native", "transformers")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """dtype: "float32", "bfloat16" (or torch's), or "auto": bfloat16 with `quantize` or if the CPU has bfloat16 dot
        products, otherwise float32. A GPU takes only bfloat16.
    quantize: "int8" multiplies weights and activations in 8 bits, on a CPU; dtype is then that of KV and logits. None
        multiplies in the dtype.
    device: "cpu"; "cuda", torch's current GPU, for models with head_dim 64, 96, 128 or 256; or "auto": a GPU if there
        is one that takes the model and the dtype and the tests have run on one (not yet), otherwise the CPU.
        `LLM.device_choice` says what was chosen and why.
    backend: what runs the model: "native", our own decoder; "transformers", the modules of the transformers package
        with our attention, KV pages and matrix products, on a CPU; or "auto": "native" if it runs the model, otherwise
        "transformers".
    levels: depth of prefix sharing: None any, 1 a single level, 0 none.
    page_size: tokens per KV page.
    kv_cache_tokens: size of the KV pool; by default three quarters of the available memory. On a CPU a pool takes
        memory as it fills.
    max_batch_tokens: tokens up to which prefill fills a forward pass; None is the default.
    num_threads: threads of torch and of the kernels (torch's setting is process-wide). None keeps torch's: one per CPU
        that the process may run on, or as many as the quota of its control group sustains.
    seed: with the job's number and the prompt's index, seeds the requests without a seed.
    allow_special_tokens: whether special tokens in the messages of a chat are treated as such; otherwise they are
        plain text, except in the assistant's own turns.
    generation_config: "auto" takes the temperature, top_p, top_k, min_p, repetition_penalty and max_tokens of
        `generate` and `chat` without sampling_params from the model's generation_config.json, and warns of settings
        that do not exist here; "vllm" takes the defaults of SamplingParams, as in vLLM. Explicit SamplingParams are
        never changed.
    reasoning_tags: a pair of strings that begin and end the reasoning in a text, which is then separated from the
        answer as `reasoning_content`. "auto" is <think> and </think> if the model's chat template or tokenizer has
        them; None separates nothing.

    Raises ValueError that names the option, what was expected and what was found.
    """

    dtype: Any = "auto"
    quantize: str | None = None
    device: str = "auto"
    backend: str = "auto"
    levels: int | None = None
    page_size: int = 16
    kv_cache_tokens: int | None = None
    max_batch_tokens: int = DEFAULT_MAX_BATCH_TOKENS
    num_threads: int | None = None
    seed: int = 0
    allow_special_tokens: bool = False
    generation_config: str = "auto"
    reasoning_tags: Any = "auto"

    def __post_init__(self) -> None:
        if self.max_batch_tokens is None:
            object.__setattr__(self, "max_batch_tokens", DEFAULT_MAX_BATCH_TOKENS)
        if self.backend not in BACKENDS:
            raise ValueError(f"backend: expected {', '.join(map(repr, BACKENDS))}, got {self.backend!r}")
        if not (self.levels is None or (type(self.levels) is int and self.levels in (0, 1))):
            raise ValueError(f"levels: expected None, 0 or 1, got {self.levels!r}")
        for name in ("page_size", "max_batch_tokens", "num_threads", "kv_cache_tokens"):
            value = getattr(self, name)
            if value is None and name in ("num_threads", "kv_cache_tokens"):
                continue
            if type(value) is not int or not 1 <= value <= MAX_INT32:
                raise ValueError(f"{name}: expected an integer from 1 to {MAX_INT32}, got {value!r}")
        if self.kv_cache_tokens is not None and self.kv_cache_tokens < self.page_size:
            raise ValueError(
                f"kv_cache_tokens: expected at least one page ({self.page_size} tokens), got {self.kv_cache_tokens}"
            )
        if type(self.seed) is not int:
            raise ValueError(f"seed: expected an integer, got {self.seed!r}")
        if self.quantize is not None and self.quantize not in QUANTIZATIONS:
            raise ValueError(f"quantize: expected None or {', '.join(map(repr, QUANTIZATIONS))}, got {self.quantize!r}")
        if self.generation_config not in ("auto", "vllm"):
            raise ValueError(f"generation_config: expected 'auto' or 'vllm', got {self.generation_config!r}")
        tags = self.reasoning_tags
        is_pair = isinstance(tags, (tuple, list)) and len(tags) == 2 and all(isinstance(t, str) and t for t in tags)
        if not (tags in ("auto", None) or is_pair):
            raise ValueError(f"reasoning_tags: expected 'auto', None or two non-empty strings, got {tags!r}")


DEFAULTS = EngineOptions()
