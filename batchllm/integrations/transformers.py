"""Jobs for a transformers model that is already in memory: our engine on its own modules.

    outputs = generate(model, tokenizer, prompts, max_new_tokens=64)

is one job, with the settings of `model.generate`. For several jobs, for scoring, or for anything else that an LLM does,
use

    with lend(model, tokenizer) as llm:
        scores = llm.score(prompts, [" yes", " no"])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from batchllm.device.choice import CPU, DeviceChoice
from batchllm.integrations.requirement import require
from batchllm.llm import LLM
from batchllm.loading import LoadedModel
from batchllm.models.config import other_settings
from batchllm.options import EngineOptions
from batchllm.outputs import RequestOutput
from batchllm.requests import Prompt, prompt_list
from batchllm.sampling_params import MAX_INT32, SamplingParams
from batchllm.tokenizer import Message, Tokenizer

require("transformers", ">=5.20.2,<5.25")

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase  # noqa: E402

from batchllm.models.held_model import describe_held, held  # noqa: E402
from batchllm.models.transformers_config import TransformersConfig  # noqa: E402

ENGINE_OPTIONS = (
    *("levels", "page_size", "kv_cache_tokens", "max_batch_tokens", "seed", "allow_special_tokens", "reasoning_tags"),
)
# Fields of a GenerationConfig, beside those that batchllm.models.config knows.
MAPPED = ("min_length", "min_new_tokens", "stop_strings")
ASKED_FOR = (  # beside the tokens
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
    *("max_time", "token_healing"),
)


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompt | Sequence[Message] | Sequence[Prompt | Sequence[Message]],
    generation_config: GenerationConfig | None = None,
    *,
    use_tqdm: bool | Callable[..., Any] = False,
    **settings: Any,
) -> list[RequestOutput]:
    """Like `model.generate`, but for many prompts, with what they share computed once.

    prompts: one or a list: text, token ids, or a conversation, a list of messages for the tokenizer's chat template.
    generation_config, settings: those of `model.generate`, with its defaults (max_new_tokens, do_sample,
        temperature, top_p, top_k, min_p, repetition_penalty, num_return_sequences, stop_strings, eos_token_id,
        max_length, min_new_tokens, ...), except settings that change tokens in unsupported ways (num_beams). Samples
        draw from `seed`, or from a seed that torch's generator draws.
    settings may also be those of `lend`.

    Returns the answers in the order of the prompts, each with num_return_sequences outputs: their token ids and text
    without the prompt.

    Raises like `lend`, and ValueError that names the setting, or the prompt by its index, before anything runs.
    """
    options = {name: settings.pop(name) for name in ENGINE_OPTIONS if name in settings}
    base, described = transformer_of(model)
    lengths = [settings.get("max_length"), *(of.max_length for of in (generation_config, base.generation_config) if of)]
    has_length = any(length is not None for length in lengths)
    config, others = base._prepare_generation_config(generation_config, **settings)
    others |= refused_settings(config)
    if others:
        name, value = next(iter(others.items()))
        raise ValueError(f"{name}: no setting of BatchLLM, got {value!r:.80}")
    if config.do_sample:
        options.setdefault("seed", int(torch.randint(MAX_INT32, (1,)).item()))
    with _loaded(base, described, tokenizer, config, options) as loaded:
        token_ids, texts = loaded.parse_prompts(_plain_prompts(loaded, prompts))
        params = []
        for index, ids in enumerate(token_ids):
            try:
                params.append(sampling_params(config, len(ids), has_length=has_length))
            except ValueError as error:
                raise ValueError(f"prompt {index}: {error}") from None
        outputs = LLM.on(loaded).generate(token_ids, params, use_tqdm=use_tqdm)
    for output, text in zip(outputs, texts, strict=True):
        output.prompt = text
    return outputs


@contextmanager
def lend(model: Any, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Iterator[LLM]:
    """An LLM on a model's own modules, which uses the weights in place. Do not use the model elsewhere until the end of
    the block. After it, or after an exception, the model is as it was before.

    model: an AutoModelForCausalLM on a CPU, in float32 or bfloat16, with any linear modules; or a PEFT model with
        adapters in such a model.
    options: of batchllm.options.EngineOptions: levels, page_size, kv_cache_tokens, max_batch_tokens, seed,
        allow_special_tokens, reasoning_tags. The others are the model's own.

    Raises TypeError for another type of model or tokenizer, and ValueError that names the option, or the architecture
    and why it does not run.
    """
    if others := [name for name in options if name not in ENGINE_OPTIONS]:
        raise ValueError(f"{others[0]}: expected an option among {', '.join(ENGINE_OPTIONS)}")
    base, described = transformer_of(model)
    with _loaded(base, described, tokenizer, base.generation_config, options) as loaded:
        yield LLM.on(loaded)


def transformer_of(model: Any) -> tuple[Any, TransformersConfig]:
    """A model itself, or the model inside a PEFT model, and its configuration."""
    if not isinstance(model, PreTrainedModel) and hasattr(model, "get_base_model"):
        if model.active_peft_config.is_prompt_learning:
            raise ValueError(f"{type(model).__name__}: learned prompts are not supported, only adapters")
        model = model.get_base_model()
    return model, describe_held(model)


def refused_settings(config: GenerationConfig) -> dict[str, Any]:
    """Settings that ask for unsupported things."""
    settings = config.to_dict()
    asked_for = {name: settings[name] for name in ASKED_FOR if settings.get(name)}
    return asked_for | other_settings({name: value for name, value in settings.items() if name not in MAPPED})


def sampling_params(config: GenerationConfig, prompt_tokens: int, *, has_length: bool) -> SamplingParams:
    """The parameters for a prompt of that many tokens. config: with defaults filled in; has_length: whether max_length,
    which counts the prompt, was set. Raises ValueError that names the field."""
    if config.max_new_tokens is not None:
        max_tokens = config.max_new_tokens
    elif not has_length:
        max_tokens = config.max_length  # transformers' default counts new tokens
    elif config.max_length > prompt_tokens:
        max_tokens = config.max_length - prompt_tokens
    else:
        raise ValueError(f"max_length: {config.max_length}, and the prompt has {prompt_tokens} tokens")
    min_tokens = config.min_new_tokens
    if min_tokens is None:
        min_tokens = max((config.min_length or 0) - prompt_tokens, 0)
    drawing: dict[str, Any] = {"temperature": 0}
    if config.do_sample:
        names = ("temperature", "top_p", "top_k", "min_p")
        drawing = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return SamplingParams(
        n=config.num_return_sequences,
        repetition_penalty=config.repetition_penalty,
        stop=config.stop_strings,
        include_stop_str_in_output=config.stop_strings is not None,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        **drawing,
    )


@contextmanager
def _loaded(
    model: PreTrainedModel,
    config: TransformersConfig,
    tokenizer: Any,
    generation_config: GenerationConfig,
    options: Mapping[str, Any],
) -> Iterator[LoadedModel]:
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"tokenizer: expected one of transformers, got {type(tokenizer).__name__}")
    eos = generation_config.eos_token_id
    eos_token_ids = () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)
    engine_options = EngineOptions(
        dtype=config.dtype, device="cpu", backend=config.backend, generation_config="vllm", **options
    )
    ours = Tokenizer.of(
        tokenizer,
        config.max_model_len,
        allow_special_tokens=engine_options.allow_special_tokens,
        reasoning_tags=engine_options.reasoning_tags,
    )
    with held(config, model) as forward_pass:
        choice = DeviceChoice(CPU, "the model is there")
        yield LoadedModel(forward_pass, config, ours, eos_token_ids, engine_options, choice)


def _plain_prompts(loaded: LoadedModel, prompts: Any) -> list[Prompt]:
    """Text and token ids. Raises ValueError that names the prompt by its index."""
    items = [prompts] if _is_conversation(prompts) else prompt_list(prompts)
    for index, item in enumerate(items):
        if _is_conversation(item):
            try:
                items[index] = loaded.tokenizer.encode_chat(item, add_generation_prompt=True)
            except ValueError as error:
                raise ValueError(f"prompt {index}: {error}") from None
    return items


def _is_conversation(item: Any) -> bool:
    return isinstance(item, (list, tuple)) and len(item) > 0 and isinstance(item[0], dict) and "role" in item[0]
