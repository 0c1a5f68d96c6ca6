"""The families of models, with the fields that each reads from config.json and its defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from batchllm.models.fields import Unsupported, flag, positive_int
from batchllm.text import printable

# transformers' defaults for missing keys of config.json; a null counts as missing.
SLIDING_WINDOW = 4096
MAX_WINDOW_LAYERS = 28
NO_ROPE_LAYER_INTERVAL = 4

Windows = Callable[[dict[str, Any], int], list[int | None]]  # (config.json, num_layers) -> of each layer; None: all
Rotated = Callable[[dict[str, Any], int], list[bool]]  # likewise: whether q and k of each layer are


def no_windows(raw: dict[str, Any], num_layers: int) -> list[int | None]:
    return [None] * num_layers


def one_window(raw: dict[str, Any], num_layers: int) -> list[int | None]:
    """`sliding_window`, of every layer."""
    return [_sliding_window(raw)] * num_layers


def windows_of_some(raw: dict[str, Any], num_layers: int) -> list[int | None]:
    """`sliding_window`, if `use_sliding_window` is set, for the layers that `layer_types` names, or otherwise for those
    from `max_window_layers` on."""
    if not flag(raw, "use_sliding_window"):
        return no_windows(raw, num_layers)
    window = _sliding_window(raw)
    if raw.get("layer_types") is not None:
        return _windows_by_type(raw, num_layers, window)
    num_full_layers = raw.get("max_window_layers", MAX_WINDOW_LAYERS)
    if not isinstance(num_full_layers, int) or isinstance(num_full_layers, bool):
        raise ValueError(f"max_window_layers: expected an integer, got {num_full_layers!r:.80}")
    return [window if layer >= num_full_layers else None for layer in range(num_layers)]


def windows_without_rotation(raw: dict[str, Any], num_layers: int) -> list[int | None]:
    """Like windows_of_some, but without `layer_types` it applies to the layers that are not rotated, and without
    `sliding_window` to none."""
    if not flag(raw, "use_sliding_window") or raw.get("sliding_window") is None:
        return no_windows(raw, num_layers)
    window = _sliding_window(raw)
    if raw.get("layer_types") is not None:
        return _windows_by_type(raw, num_layers, window)
    return [None if rotated else window for rotated in some_rotated(raw, num_layers)]


def all_rotated(raw: dict[str, Any], num_layers: int) -> list[bool]:
    return [True] * num_layers


def some_rotated(raw: dict[str, Any], num_layers: int) -> list[bool]:
    """The layers with a 1 in `no_rope_layers`, or otherwise all but every `no_rope_layer_interval`th."""
    rotated = raw.get("no_rope_layers")
    if rotated is None:
        interval = positive_int(raw, "no_rope_layer_interval", NO_ROPE_LAYER_INTERVAL)
        return [(layer + 1) % interval != 0 for layer in range(num_layers)]
    if not isinstance(rotated, list) or len(rotated) < num_layers or any(one not in (0, 1) for one in rotated):
        raise ValueError(f"no_rope_layers: expected 0 or 1 for each of {num_layers} layers, got {rotated!r:.80}")
    return [bool(one) for one in rotated[:num_layers]]


@dataclass(frozen=True)
class Family:
    """A decoder architecture with RMS norms, rotated q and k, and gated MLPs."""

    architecture: str
    model_type: str
    reads_attention_bias: bool = False  # of q, k, v and o
    reads_mlp_bias: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    windows: Windows = no_windows
    rotated: Rotated = all_rotated
    # Defaults for missing fields.
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0


FAMILIES = (
    Family("LlamaForCausalLM", "llama", reads_attention_bias=True, reads_mlp_bias=True),
    Family("MistralForCausalLM", "mistral", windows=one_window),
    Family("Qwen2ForCausalLM", "qwen2", qkv_bias=True, windows=windows_of_some),
    Family("Qwen3ForCausalLM", "qwen3", reads_attention_bias=True, qk_norm=True, windows=windows_of_some, head_dim=128),
    Family(
        "SmolLM3ForCausalLM",
        "smollm3",
        reads_attention_bias=True,
        reads_mlp_bias=True,
        windows=windows_without_rotation,
        rotated=some_rotated,
        tie_word_embeddings=True,
        rope_theta=2e6,
    ),
)


def family_of(raw: dict[str, Any]) -> Family:
    """The family by `architectures`, or otherwise by `model_type`. Raises Unsupported that lists the families."""
    architecture = architecture_of(raw)
    for family in FAMILIES:
        if architecture == family.architecture:
            return family
    for family in FAMILIES:
        if raw.get("model_type") == family.model_type:
            return family
    raise Unsupported(unsupported(raw))


def architecture_of(raw: dict[str, Any]) -> str | None:
    """The first of `architectures`."""
    names = raw.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"architectures: expected a list of names, got {names!r:.80}")
    return names[0] if names else None


def unsupported(raw: dict[str, Any]) -> str:
    """The reason for refusing a model of an unknown family."""
    supported = ", ".join(family.architecture for family in FAMILIES)
    return f"{named(raw)} is not supported; supported: {supported}"


def named(raw: dict[str, Any]) -> str:
    """The name of a model: its architecture, or otherwise its model_type."""
    name, model_type = architecture_of(raw), raw.get("model_type")
    if name is None and model_type is not None:
        return f"model_type {printable(str(model_type))}"
    return f"architecture {printable(name or '(none)')}"


def _windows_by_type(raw: dict[str, Any], num_layers: int, window: int | None) -> list[int | None]:
    types, window_of = raw["layer_types"], {"full_attention": None, "sliding_attention": window}
    if not isinstance(types, list) or len(types) != num_layers:
        raise ValueError(f"layer_types: expected one for each of {num_layers} layers, got {types!r:.80}")
    for layer, kind in enumerate(types):
        if not isinstance(kind, str) or kind not in window_of:
            raise ValueError(f"layer_types[{layer}]: expected one of {', '.join(window_of)}, got {kind!r:.80}")
    return [window_of[kind] for kind in types]


def _sliding_window(raw: dict[str, Any]) -> int | None:
    if "sliding_window" in raw and raw["sliding_window"] is None:
        return None
    return positive_int(raw, "sliding_window", SLIDING_WINDOW)
