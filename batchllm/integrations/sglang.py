"""Our plan, for SGLang: `sglang.Engine` gets a job in the planner's order, and its outputs come back in the caller's.

    from batchllm.integrations.sglang import generate

    engine = sglang.Engine(model_path=model)
    outputs = generate(engine, prompts, {"max_new_tokens": 64})

SGLang finds a prefix only once the step that computes it is over, so the first reader of each goes ahead of the others.
A prompt's request id tells its group, for your own schedulers and logs. The engine's schedule_policy should be "fcfs",
its default: the others reorder the job.

SGLang does not start without a GPU. The calls here were compared with its package and run against a stand-in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from batchllm.integrations.job_order import plan_order
from batchllm.integrations.requirement import require

if TYPE_CHECKING:
    from sglang import Engine

VERSIONS = ">=0.5.23,<0.5.24"
DEFAULT_MAX_NEW_TOKENS = 128  # SGLang's
# A step is planned while the one before runs, so that one's prefixes are found only from the next step on.
STEPS_AHEAD = 2

Params = dict[str, Any]


def generate(
    engine: Engine, prompts: Sequence[str | list[int]], params: Params | Sequence[Params] | None = None
) -> list[dict[str, Any]]:
    """`engine.generate` in a better order. The outputs are in the order of the prompts.

    prompts: each is text or token ids.
    params: SGLang's sampling parameters, one dict for all or one for each prompt.

    A prompt that is empty, or too long for the model's context with its max_new_tokens, fails alone: its output has no
    tokens, and its finish_reason has the type "abort" and a message. In engine.generate it would end the job.

    Raises ImportError for an unsupported version of SGLang, and ValueError, before anything runs, that names the faulty
    prompt or parameters; also for "n": repeat the prompt n times instead.
    """
    require("sglang", VERSIONS)
    manager = engine.tokenizer_manager
    all_params = _params_list(params, len(prompts))
    token_ids = [list(manager.tokenizer.encode(p) if isinstance(p, str) else p) for p in prompts]
    job_order = plan_order(token_ids, [_output_tokens(manager, *of) for of in zip(token_ids, all_params, strict=True)])
    job_order = job_order.primed(STEPS_AHEAD * _step_tokens(engine.server_args))

    job = uuid4().hex
    outputs: list[dict[str, Any]] = [{} for _ in prompts]
    accepted = []
    request_ids = [f"{job}-group{group}-{index}" for index, group in enumerate(job_order.group.tolist())]
    for index in job_order.order.tolist():
        if why := _refusal(manager, token_ids[index], all_params[index]):
            outputs[index] = _refused_output(request_ids[index], token_ids[index], why)
        else:
            accepted.append(index)
    if accepted:
        answers = engine.generate(
            input_ids=[token_ids[index] for index in accepted],
            sampling_params=[all_params[index] for index in accepted],
            rid=[request_ids[index] for index in accepted],
        )
        for index, answer in zip(accepted, answers, strict=True):
            outputs[index] = answer
    return outputs


def _params_list(params: Any, num_prompts: int) -> list[Params]:
    items = [params or {}] * num_prompts if params is None or isinstance(params, dict) else list(params)
    if len(items) != num_prompts:
        raise ValueError(f"params: expected one for each of {num_prompts} prompts, got {len(items)}")
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise ValueError(f"params[{index}]: expected a dict, got {type(item).__name__}")
        if item.get("n", 1) != 1:
            raise ValueError(f"params[{index}]: n: expected 1, got {item['n']!r}: repeat the prompt n times")
    return items


def _step_tokens(server_args: Any) -> int:
    """The most tokens of one prefill."""
    chunk = server_args.chunked_prefill_size  # -1: whole prompts
    bound: int = server_args.max_prefill_tokens
    return min(chunk, bound) if chunk and chunk > 0 else bound


def _max_new_tokens(params: Params) -> int | None:
    return params.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)


def _output_tokens(manager: Any, token_ids: Sequence[int], params: Params) -> int:
    room = manager.context_len - len(token_ids)
    return max(min(room if (bound := _max_new_tokens(params)) is None else bound, room), 1)


def _refusal(manager: Any, token_ids: Sequence[int], params: Params) -> str | None:
    """Why the engine would refuse the whole job for this prompt."""
    if not token_ids:
        return "the prompt is empty"
    if manager.allow_auto_truncate:
        return None
    num_tokens = len(token_ids) + manager.num_reserved_tokens
    if num_tokens < manager.context_len and num_tokens + (_max_new_tokens(params) or 0) <= manager.context_len:
        return None
    return f"the prompt has {num_tokens} tokens, and the model takes {manager.context_len} with max_new_tokens"


def _refused_output(request_id: str, token_ids: Sequence[int], why: str) -> dict[str, Any]:
    finish_reason = {"type": "abort", "message": why, "status_code": 400, "err_type": "BadRequestError"}
    meta_info = {"id": request_id, "finish_reason": finish_reason, "prompt_tokens": len(token_ids)}
    return {"text": "", "output_ids": [], "meta_info": meta_info | {"completion_tokens": 0, "cached_tokens": 0}}
