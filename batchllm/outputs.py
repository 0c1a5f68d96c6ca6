"""What a job gives back. Field names are vLLM's."""

from __future__ import annotations

from dataclasses import dataclass, field

MODEL_LENGTH = "max_model_len"


@dataclass
class Logprob:
    """Of one token where it might have stood."""

    logprob: float  # under the model, in nats
    rank: int  # 1 is the likeliest token there, of equal ones the first, which is what greedy decoding takes
    decoded_token: str | None = None  # what it adds to a text; None where the model has no tokenizer


@dataclass
class CompletionOutput:
    """One of a request's `n` completions."""

    index: int
    text: str  # what follows the prompt's; without the stop string or stop token unless include_stop_str_in_output
    token_ids: list[int]  # everything that was generated, a final stop token included
    cumulative_logprob: float  # sum of the tokens' log-probabilities under the model, in nats
    finish_reason: str | None  # "stop" or "length"; "error" where the tokens could not be decoded; None: not yet
    # The stop token or string; MODEL_LENGTH where the context was full before max_tokens; what failed; else None.
    stop_reason: int | str | None = None
    # Where SamplingParams.logprobs or logprob_token_ids ask: per token of the output that token itself, first, and the
    # others, by id.
    logprobs: list[dict[int, Logprob]] | None = None
    # What the model thought before it answered, where its text is marked so (EngineOptions.reasoning_tags).
    reasoning_content: str | None = None
    content: str | None = None  # the text without that; None where nothing follows it

    def __post_init__(self) -> None:
        if self.reasoning_content is None:
            self.content = self.text

    @property
    def is_cut(self) -> bool:
        """Whether the model's length ended it, before max_tokens."""
        return self.finish_reason == "length" and self.stop_reason == MODEL_LENGTH


@dataclass
class RequestOutput:
    request_id: str  # the prompt's index in the job
    prompt: str | None  # None where the prompt came as token ids
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int  # prompt tokens that were not computed for this request and its n completions
    # Where SamplingParams.prompt_logprobs asks: per token of the prompt the likeliest tokens and that token itself, by
    # id; None for the first, which nothing predicts, and for those before prompt_logprobs_start.
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None


@dataclass(frozen=True)
class ContinuationScore:
    """How likely a continuation is after its prompt, under the model."""

    token_ids: list[int]  # of the continuation
    logprobs: list[float]  # of each of them, in nats
    is_greedy: bool  # each of them is the likeliest there

    @property
    def logprob(self) -> float:
        """Of all of it."""
        return sum(self.logprobs)

    @property
    def mean_logprob(self) -> float:
        """Per token."""
        return self.logprob / len(self.logprobs)


@dataclass(frozen=True)
class Choice:
    """Which of some continuations a prompt makes likeliest."""

    index: int  # of the likeliest; the first of equals
    probabilities: list[float]  # of each, given that it is one of them
    scores: list[ContinuationScore]


@dataclass(frozen=True)
class JobProgress:
    """A snapshot of a running job; counts since its start."""

    num_requests: int
    finished_requests: int
    scheduled_prompt_tokens: int  # computed or found computed, for each of n completions
    saved_prompt_tokens: int  # of them, found computed
    output_tokens: int
    remaining_output_tokens: int  # at most: what unfinished requests may still generate
    elapsed_s: float
    running_requests: int = 0
    waiting_requests: int = 0
    ended_early: int = 0  # requests that ended before their last token might have come
    computed_prompt_tokens: int = 0  # what preemptions made to be computed again included
    remaining_prompt_tokens: int = 0  # at most: still to be computed, a shared prefix once
    recomputed_tokens: int = 0  # prompt and generated
    kv_tokens: int = 0  # in the pages that are in use
    peak_kv_tokens: int = 0
    kv_cache_tokens: int = 0  # in all pages
    steps: int = 0
    preemptions: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # by phase
