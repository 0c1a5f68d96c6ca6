"""What transformers makes of a config.json: a model without weights, examined on the meta device.

No code in the model's directory is executed: the configuration is one of transformers' own classes, made from the JSON
object without the fields that name code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature, unwrap
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from batchllm.models.config import MAX_LAYERS, config_file, dtype_of, eos_token_ids, read_config
from batchllm.models.description import ModelDescription
from batchllm.models.families import architecture_of, named
from batchllm.models.fields import Unsupported, naming
from batchllm.models.layer_spec import AttentionSpec
from batchllm.models.quantization import read_quantization
from batchllm.models.transformers_attention import NAME, AttentionCall, hand_attention_to
from batchllm.text import printable

PACKAGE = f"transformers {transformers.__version__}"
# Fields of a config.json that name code to fetch or import.
CODE_FIELDS = ("auto_map", "attn_implementation", "experts_implementation", "fusion_config", "quantization_config")
LAYER_TYPES = ("full_attention", "sliding_attention")
# Arguments beside those of AttentionCall that models pass to attention and that change nothing here.
OTHER_KEYWORDS = {"position_ids", "use_cache", "output_router_logits", "output_attentions", "output_hidden_states"}
PROBED_TOKENS = 3


@dataclass(frozen=True, kw_only=True)
class TransformersConfig(ModelDescription):
    """A model that transformers' own modules run."""

    backend = "transformers"
    layers: tuple[AttentionSpec, ...]
    linear_parameters: int  # counts only the experts that a row goes to
    stored_linear_parameters: int  # counts all
    parameters: int
    hugging_face: PretrainedConfig = field(compare=False, repr=False)

    @classmethod
    def from_directory(cls, path: Path) -> TransformersConfig:
        """Reads a config.json or a model directory.

        Raises FileNotFoundError, Unsupported that names the architecture and why it does not run, and ValueError for
        an invalid file or field.
        """
        file = config_file(path)
        raw = read_config(file)
        with naming(file):
            read_quantization(raw)
            config = _describe(raw)
        return replace(config, eos_token_ids=eos_token_ids(path, raw, config.vocab_size))

    @classmethod
    def of_held(cls, model: PreTrainedModel) -> TransformersConfig:
        """The configuration of a model in memory, without end-of-sequence ids. Raises Unsupported that names the
        architecture and why it does not run."""
        config = _describe(model.config.to_dict())
        if config.architecture not in (ancestor.__name__ for ancestor in type(model).__mro__):
            why = f"{PACKAGE} makes a {config.architecture} of its configuration"
            raise Unsupported(f"{type(model).__name__} does not run: {why}")
        return replace(config, dtype=str(model.dtype).removeprefix("torch."))

    @property
    def attention_of_layers(self) -> tuple[AttentionSpec, ...]:
        return self.layers

    @property
    def num_linear_parameters(self) -> int:
        return self.linear_parameters

    @property
    def num_stored_linear_parameters(self) -> int:
        return self.stored_linear_parameters

    @property
    def num_parameters(self) -> int:
        return self.parameters


def on_meta(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model without memory for its weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, attn_implementation=NAME, dtype=dtype, trust_remote_code=False
        )
    model.eval()
    return model


def _describe(raw: dict[str, Any]) -> TransformersConfig:
    dtype = dtype_of(raw)
    with _refusing(raw):
        _check_layer_types(raw)
        config = _hugging_face_config(raw)
        _check_layer_types(config.to_dict())
        if config.is_encoder_decoder or config.get_text_config() is not config:
            raise Unsupported("it is no decoder of text alone")
        if (num_layers := config.num_hidden_layers) > MAX_LAYERS:
            raise Unsupported(f"num_hidden_layers: expected at most {MAX_LAYERS}, got {num_layers}")
        probe = _Probe(config)
        model = probe.model
        if len(probe.calls) != num_layers:
            raise Unsupported(f"{len(probe.calls)} of its {num_layers} layers call transformers' attention interface")
        max_model_len = _max_model_len(config)
        _check_windows(config, list(probe.calls.values()), max_model_len)
        return TransformersConfig(
            architecture=type(model).__name__,
            vocab_size=config.vocab_size,
            hidden_size=model.get_output_embeddings().weight.shape[1],
            layers=tuple(_attention(call, max_model_len) for call in probe.calls.values()),
            max_model_len=max_model_len,
            tie_word_embeddings=bool(model.all_tied_weights_keys),
            dtype=dtype,
            linear_parameters=probe.num_linear_parameters,
            stored_linear_parameters=probe.num_stored_linear_parameters,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            hugging_face=config,
        )


def _check_layer_types(config: dict[str, Any]) -> None:
    """Refuses unknown layer types, both before transformers reads them and after it has filled them in."""
    types = config.get("layer_types")
    for kind in types if isinstance(types, list) else ():
        if kind not in LAYER_TYPES:
            raise Unsupported(f"it has layers of type {kind}, and only {' and '.join(LAYER_TYPES)} are supported")


def _check_windows(config: PretrainedConfig, calls: list[AttentionCall], max_model_len: int) -> None:
    """Refuses layers whose window is only in a mask, which attention over pages does not see. A prompt would have to be
    longer than the window to show it."""
    window, types = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if types is not None:
        is_told = all(call.window for call, kind in zip(calls, types, strict=True) if kind == "sliding_attention")
    else:
        is_told = any(call.window for call in calls) or "sliding_window" not in signature(type(config)).parameters
    if not is_told and isinstance(window, int) and 0 < window < max_model_len:
        raise Unsupported(f"its attention is not told its window of {window} positions")


def _hugging_face_config(raw: dict[str, Any]) -> PretrainedConfig:
    model_type, architecture = raw.get("model_type"), architecture_of(raw)
    if not isinstance(model_type, str) or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise Unsupported("it is no causal language model that the package has")
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    if architecture not in (None, known):
        raise Unsupported(f"of {model_type} models the package has {known}")
    settings = {name: value for name, value in raw.items() if name.removeprefix("_") not in CODE_FIELDS}
    config: PretrainedConfig = CONFIG_MAPPING[model_type].from_dict(settings)
    # Some models search the tokens of every pass for it; some classes refuse to be without.
    vars(config)["pad_token_id"] = None
    return config


def _max_model_len(config: PretrainedConfig) -> int:
    """The length up to which a row's rotation does not depend on the longest sequence of its batch: beyond the original
    length "longrope" has other factors, beyond max_position_embeddings "dynamic" does."""
    length: int | None = getattr(config, "max_position_embeddings", None)
    if length is None:
        raise Unsupported("its config.json has no max_position_embeddings")
    rotations = getattr(config, "rope_parameters", None) or {}
    for rotation in (rotations, *rotations.values()):  # of the model, or of each kind of layer
        if isinstance(rotation, dict) and rotation.get("rope_type") == "longrope":
            length = min(length, rotation["original_max_position_embeddings"])
    return length


def _attention(call: AttentionCall, max_model_len: int) -> AttentionSpec:
    _, num_qo_heads, _, head_dim = call.query.shape
    attention = AttentionSpec(
        num_qo_heads,
        call.key.shape[1],
        head_dim,
        softmax_scale=1 / math.sqrt(head_dim) if call.scale is None else float(call.scale),
        soft_cap=call.soft_cap or 0.0,
        has_sinks=call.sinks is not None,
    )
    return attention.sliding(call.window, max_model_len)


class _Probe:
    """One forward pass on the meta device: the layers' calls of attention, and the path of a row.

    Raises Unsupported for what attention over pages does not support.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        self.calls: dict[nn.Module, AttentionCall] = {}  # in their order
        self.num_linear_parameters = self.num_stored_linear_parameters = 0
        token_ids = torch.zeros(1, PROBED_TOKENS, dtype=torch.int64, device="meta")
        try:
            self.model = on_meta(config, torch.float32)
            if self.model.base_model is self.model:
                raise Unsupported("it has no base model apart from its output layer")
            hand_attention_to(self._attend, self.model)
            for module in self.model.base_model.modules():
                self._count(module)
                if hasattr(module, "rope_type"):  # regardless of the length of a sequence
                    module.forward = partial(unwrap(type(module).forward), module)
            self.model.base_model(input_ids=token_ids, position_ids=token_ids, use_cache=False)
        except Exception as error:
            if self.calls or isinstance(error, Unsupported):
                raise
            raise Unsupported(f"it does not call transformers' attention interface ({_one_line(error)})") from None

    def _attend(self, call: AttentionCall) -> Tensor:
        if call.mask is not None:
            raise Unsupported("it makes a mask of its own")
        if not getattr(call.module, "is_causal", True):
            raise Unsupported("its attention is not causal")
        if call.module in self.calls:
            raise Unsupported("a layer attends twice")
        unknown = [name for name, value in call.others.items() if value is not None and name not in OTHER_KEYWORDS]
        if unknown:
            raise Unsupported(f"it hands {unknown[0]} to attention")
        if call.key.shape != call.value.shape or call.key.shape[3] != call.query.shape[3]:
            raise Unsupported("the heads of its queries, keys and values differ in size")
        self.calls[call.module] = call
        return call.query.transpose(1, 2)

    def _count(self, module: nn.Module) -> None:
        """Matrices that every row is multiplied with. Experts, in one tensor each, are not run, because routing depends
        on values."""
        sizes = [parameter.shape for parameter in module.parameters(recurse=False)]
        if any(len(size) == 3 for size in sizes):

            def experts(hidden: Tensor, *routing: Tensor, **_: Any) -> Tensor:
                num_experts = max(size[0] for size in sizes)
                chosen = routing[0].shape[-1] if routing else num_experts
                total = sum(math.prod(size) for size in sizes if len(size) == 3)
                self.num_linear_parameters += total * chosen // num_experts
                self.num_stored_linear_parameters += total
                return hidden

            module.forward = experts
        elif not isinstance(module, nn.Embedding):
            total = sum(math.prod(size) for size in sizes if len(size) == 2)
            self.num_linear_parameters += total
            self.num_stored_linear_parameters += total


@contextmanager
def _refusing(raw: dict[str, Any]) -> Iterator[None]:
    """Turns whatever the package's code raises into the reason why a model does not run."""
    try:
        yield
    except Exception as error:
        why = f"{named(raw)} does not run by the modules of {PACKAGE}: {reason(error)}"
        raise Unsupported(f"{why}; docs/guide/models.md lists what runs") from None


def reason(error: Exception) -> str:
    """Why a model does not run, on one line: what we found, or what the package's code raised."""
    return printable(str(error) if isinstance(error, Unsupported) else _one_line(error))


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
