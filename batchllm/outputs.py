"""What a job returns. Field names are vLLM's."""

from __future__ import annotations

from dataclasses import dataclass, field

MODEL_LENGTH = "max_model_len"


@dataclass
class Logprob:
    """The log-probability of a token at one position."""

    logprob: float  # under the model, in nats
    rank: int  # 1 is the likeliest token there (the first of equals), which greedy decoding takes
    decoded_token: str | None = None  # what it adds to a text; None without a tokenizer


@dataclass
class CompletionOutput:
    """One of a request's `n` completions."""

    index: int
    text: str  # after the prompt's; without the stop string or stop token unless include_stop_str_in_output
    token_ids: list[int]  # all generated tokens, including a final stop token
    cumulative_logprob: float  # sum of the tokens' log-probabilities under the model, in nats
    finish_reason: str | None  # "stop" or "length"; "error" if the tokens could not be decoded; None: not yet
    # The stop token or string; MODEL_LENGTH if the context was full before max_tokens; what failed; otherwise None.
    stop_reason: int | str | None = None
    # If SamplingParams.logprobs or logprob_token_ids ask for them: for each output token, itself first, then the
    # others, by id.
    logprobs: list[dict[int, Logprob]] | None = None
    # The reasoning before the answer, if tags mark it (EngineOptions.reasoning_tags).
    reasoning_content: str | None = None
    content: str | None = None  # the text without the reasoning; None if nothing follows it

    def __post_init__(self) -> None:
        if self.reasoning_content is None:
            self.content = self.text

    @property
    def is_cut(self) -> bool:
        """Whether the model's context length ended it before max_tokens."""
        return self.finish_reason == "length" and self.stop_reason == MODEL_LENGTH


@dataclass
class RequestOutput:
    request_id: str  # the prompt's index in the job
    prompt: str | None  # None if the prompt came as token ids
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int  # prompt tokens that were not computed for this request and its n completions
    # If SamplingParams.prompt_logprobs asks for them: for each prompt token, the likeliest tokens and itself, by id;
    # None for the first, which nothing predicts, and for those before prompt_logprobs_start.
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None


@dataclass(frozen=True)
class EchoedPrompt:
    """A prompt as an answer repeats it."""

    text: str
    first_token: str | None  # what it adds to the text, as Logprob.decoded_token: nothing predicts it


@dataclass(frozen=True)
class ContinuationScore:
    """How likely a continuation is after its prompt, under the model."""

    token_ids: list[int]  # of the continuation
    logprobs: list[float]  # of each of them, in nats
    is_greedy: bool  # whether each of them is the likeliest there

    @property
    def logprob(self) -> float:
        """The log-probability of the whole continuation."""
        return sum(self.logprobs)

    @property
    def mean_logprob(self) -> float:
        """Per token."""
        return self.logprob / len(self.logprobs)


@dataclass(frozen=True)
class Choice:
    """The likeliest of several continuations of a prompt."""

    index: int  # of the likeliest; the first of equals
    probabilities: list[float]  # of each, given that one of them follows
    scores: list[ContinuationScore]


@dataclass(frozen=True)
class JobProgress:
    """A snapshot of a running job; counts since its start."""

    num_requests: int
    finished_requests: int
    scheduled_prompt_tokens: int  # computed or reused, for each of n completions
    saved_prompt_tokens: int  # of these, reused
    output_tokens: int
    remaining_output_tokens: int  # at most: what unfinished requests may still generate
    elapsed_s: float
    running_requests: int = 0
    waiting_requests: int = 0
    ended_early: int = 0  # requests that ended before their limit
    computed_prompt_tokens: int = 0  # including those computed again after preemptions
    remaining_prompt_tokens: int = 0  # at most: still to be computed, a shared prefix once
    recomputed_tokens: int = 0  # prompt and generated
    kv_tokens: int = 0  # in the pages that are in use
    peak_kv_tokens: int = 0
    kv_cache_tokens: int = 0  # in all pages
    steps: int = 0
    preemptions: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # by phase
