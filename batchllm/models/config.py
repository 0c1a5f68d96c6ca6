"""A Hugging Face model directory: where it is, what its config.json says, what we support of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from batchllm.models.layer_spec import AttentionSpec
from batchllm.sampling_params import MAX_INT32, SamplingParams
from batchllm.text import printable

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROPE_FACTORS: dict[str, tuple[str, ...]] = {  # by the types of rotation that are supported
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
# What may stand beside the factors: read elsewhere, or without effect on these types.
ROPE_OTHER_KEYS = {"rope_theta", "rope_type", "type", "partial_rotary_factor", "original_max_position_embeddings"}
# transformers' values where config.json has no such key; a null is none.
SLIDING_WINDOW = 4096
MAX_WINDOW_LAYERS = 28
MIN_NUMBER, MAX_NUMBER = 1.2e-38, 3.4e38  # normal numbers of float32
CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
# Settings of generation_config.json that change what is sampled: ours by their names here, and the others with the
# values at which they do nothing.
SAMPLING_SETTINGS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "max_new_tokens": "max_tokens"}
OTHER_SETTINGS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "typical_p", "length_penalty"), (1,)),
    **dict.fromkeys(("min_p", "top_h", "epsilon_cutoff", "eta_cutoff", "diversity_penalty"), (0,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), (0,)),
    **dict.fromkeys(("num_beams", "num_beam_groups", "guidance_scale"), (1,)),
    **dict.fromkeys(("penalty_alpha", "bad_words_ids", "force_words_ids", "constraints", "sequence_bias"), ()),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"), ()),
    **dict.fromkeys(("exponential_decay_length_penalty", "watermarking_config", "stop_strings", "dola_layers"), ()),
}
HUB_FILES_BUT_WEIGHTS = ["*.json", "*.jinja", "tokenizer*", "*.model"]


@dataclass(frozen=True)
class ModelConfig:
    """The decoder that `batchllm.models.decoder` runs. Sizes are in elements."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope_scaling: dict[str, Any] = field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()

    @property
    def attention_kinds(self) -> tuple[AttentionSpec, ...]:
        """The distinct kinds of attention of the layers."""
        return (AttentionSpec(self.num_qo_heads, self.num_kv_heads, self.head_dim, 1 / math.sqrt(self.head_dim)),)

    @property
    def kind_of_layer(self) -> tuple[int, ...]:
        """[num_layers] into attention_kinds."""
        return (0,) * self.num_layers

    @property
    def attention_layers(self) -> list[AttentionSpec]:
        """[num_layers]"""
        return [self.attention_kinds[kind] for kind in self.kind_of_layer]

    @classmethod
    def from_directory(cls, directory: Path) -> ModelConfig:
        """Reads config.json. The end-of-sequence ids are those of generation_config.json and its own, but none outside
        the vocabulary.

        Raises ValueError where the file, the architecture or a setting is not supported, naming it.
        """
        raw, generation = read_json(directory / CONFIG), _read_generation_config(directory)
        with _naming(directory / GENERATION_CONFIG):
            eos_token_ids = _token_ids(generation)
        with _naming(directory / CONFIG):
            config = _parse(raw)
            eos_token_ids += _token_ids(raw)
        known = (token for token in eos_token_ids if 0 <= token < config.vocab_size)
        return replace(config, eos_token_ids=tuple(dict.fromkeys(known)))


def sampling_defaults(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What generation_config.json says of sampling: fields of SamplingParams, and settings that we do not have.

    Raises ValueError that names the file and the field.
    """
    raw = _read_generation_config(directory)
    given = {ours: raw[name] for name, ours in SAMPLING_SETTINGS.items() if raw.get(name) is not None}
    with _naming(directory / GENERATION_CONFIG):
        SamplingParams(**given)
    others = {
        name: raw[name]
        for name, neutral in OTHER_SETTINGS.items()
        if raw.get(name) not in (None, False, [], {}, *neutral)
    }
    return given, others


def resolve_model(model: str | Path, *, weights: bool = True) -> Path:
    """The directory of `model`: a local one, or a Hugging Face hub id fetched (with its weights, or without) into the
    hub's cache.

    Raises FileNotFoundError that says what was looked for and where.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        kind = "is a file, not a model directory" if path.exists() else "no such directory"
        raise FileNotFoundError(f"model {str(model)!r}: {kind}")
    from huggingface_hub import snapshot_download

    try:
        patterns = [*HUB_FILES_BUT_WEIGHTS, *(["*.safetensors"] if weights else [])]
        return Path(snapshot_download(str(model), allow_patterns=patterns))
    except Exception as error:
        raise FileNotFoundError(
            f"model {str(model)!r}: no such directory, and fetching it from the Hugging Face hub failed: "
            f"{type(error).__name__}: {error}"
        ) from error


def model_files(model: str | Path) -> list[Path]:
    """What is read of a local model, or of its config.json alone; nothing of a hub id."""
    path = Path(model).expanduser()
    if path.is_file():
        return [path]
    patterns = (*HUB_FILES_BUT_WEIGHTS, "*.safetensors")
    return [file for pattern in patterns for file in path.glob(pattern) if file.exists()]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; FileNotFoundError or ValueError that names the file, and the field where a number is
    not finite."""
    check_regular(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: not found; a model directory has a config.json") from None
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON: nested too deeply") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # of the encoding, the syntax, or a number of too many digits
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    for name, number in _not_finite(value):
        raise ValueError(f"{path}: {printable(name)}: expected a finite number, got {number}")
    return value


def check_regular(path: Path) -> None:
    """Raises ValueError for what would be waited for (a FIFO) or cannot be read (a directory)."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a regular file")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A ValueError names the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _not_finite(value: Any) -> Iterator[tuple[str, float]]:
    """Every number in a JSON value that is infinite or none, and the field it is in: "rope_scaling.factor"."""
    left = [("", value)]
    while left:
        place, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{place}.{name}" if place else name, item) for name, item in value.items()]
        elif isinstance(value, list):
            left += [(f"{place}[{index}]", item) for index, item in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            yield place, value


def _read_generation_config(directory: Path) -> dict[str, Any]:
    path = directory / GENERATION_CONFIG
    return read_json(path) if path.exists() else {}


def _parse(raw: dict[str, Any]) -> ModelConfig:
    architectures = raw.get("architectures") or ["(none)"]
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        raise ValueError(f"architectures: expected a list of names, got {architectures!r:.80}")
    architecture = architectures[0]
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"architecture {printable(architecture)} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    num_layers = positive_int(raw, "num_hidden_layers")
    max_model_len = positive_int(raw, "max_position_embeddings")
    _refuse_unsupported(raw)
    _refuse_sliding_window(raw, architecture, num_layers, max_model_len)

    num_qo_heads = positive_int(raw, "num_attention_heads")
    hidden_size = positive_int(raw, "hidden_size")
    num_kv_heads = positive_int(raw, "num_key_value_heads", num_qo_heads)
    if num_qo_heads % num_kv_heads:
        raise ValueError(
            f"num_attention_heads ({num_qo_heads}) is not a multiple of num_key_value_heads ({num_kv_heads})"
        )
    head_dim = positive_int(raw, "head_dim", hidden_size // num_qo_heads)
    if head_dim % 2:
        raise ValueError(f"head_dim: expected an even number, got {head_dim}")
    rope_theta, rope_scaling = _rope(raw)
    attention_bias = _flag(raw, "attention_bias")
    qwen2 = architecture == "Qwen2ForCausalLM"
    return ModelConfig(
        architecture=architecture,
        vocab_size=positive_int(raw, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=positive_int(raw, "intermediate_size"),
        num_layers=num_layers,
        num_qo_heads=num_qo_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_model_len=max_model_len,
        rms_norm_eps=_number("rms_norm_eps", raw.get("rms_norm_eps", 1e-6), at_most=1.0),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_word_embeddings=_flag(raw, "tie_word_embeddings"),
        qkv_bias=qwen2 or attention_bias,
        o_bias=attention_bias and not qwen2,
        mlp_bias=_flag(raw, "mlp_bias"),
        qk_norm=architecture == "Qwen3ForCausalLM",
    )


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    """Settings that would change the result silently if they were ignored."""
    if quantization := raw.get("quantization_config"):
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else quantization
        method = printable(str(method))
        raise ValueError(f"quantization_config ({method}) is not supported; use float32, float16 or bfloat16 weights")
    if (activation := raw.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise ValueError(f"hidden_act: expected silu, got {printable(str(activation))}")
    for settings in (raw, _rope_settings(raw)):
        if (rotated := settings.get("partial_rotary_factor", 1.0)) != 1.0:
            raise ValueError(f"partial_rotary_factor: expected 1.0, got {printable(str(rotated))}")


def _refuse_sliding_window(raw: dict[str, Any], architecture: str, num_layers: int, max_model_len: int) -> None:
    """A window is none where no layer has it, or no context is longer."""
    if architecture == "LlamaForCausalLM":
        return
    always = architecture == "MistralForCausalLM"
    if not always and not _flag(raw, "use_sliding_window"):
        return
    window = raw.get("sliding_window", SLIDING_WINDOW)
    if window is None or positive_int({"sliding_window": window}, "sliding_window") >= max_model_len:
        return
    if not always:
        num_full_layers = raw.get("max_window_layers", MAX_WINDOW_LAYERS)
        if not isinstance(num_full_layers, int):
            raise ValueError(f"max_window_layers: expected an integer, got {num_full_layers!r}")
        kinds = raw.get("layer_types")
        if kinds is not None and not (isinstance(kinds, list) and len(kinds) == num_layers):
            raise ValueError(f"layer_types: expected one for each of {num_layers} layers, got {kinds!r:.80}")
        if num_full_layers >= num_layers if kinds is None else all(kind == "full_attention" for kind in kinds):
            return
    missing = "" if "sliding_window" in raw else ", which is what a config without the key means"
    raise ValueError(f"sliding_window: expected none, got {window}{missing}")


def _rope_settings(raw: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` (transformers 5) or `rope_scaling` (4)."""
    given = {name: raw[name] for name in ("rope_parameters", "rope_scaling") if raw.get(name) not in (None, {})}
    for name, settings in given.items():
        if not isinstance(settings, dict):
            raise ValueError(f"{name}: expected an object, got {settings!r:.80}")
    if len(given) == 2 and given["rope_parameters"] != given["rope_scaling"]:
        raise ValueError("rope_parameters and rope_scaling differ; transformers reads one of them")
    return next(iter(given.values()), {})


def _rope(raw: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """(theta, scaling); theta may stand beside the scaling or in it."""
    settings = _rope_settings(raw)
    theta = settings.get("rope_theta", raw.get("rope_theta", 10000.0))
    rope_type = settings.get("rope_type", settings.get("type", "default"))
    if "type" in settings and settings["type"] != rope_type:
        raise ValueError(f"rope type: rope_type is {rope_type!r:.80}, and type {settings['type']!r:.80}")
    nested = [name for name, value in settings.items() if isinstance(value, dict)]
    if nested:
        raise ValueError(f"rope_parameters: settings of a kind of layer ({printable(nested[0])}) are not supported")
    if not isinstance(rope_type, str) or rope_type not in ROPE_FACTORS:
        raise ValueError(f"rope type {rope_type!r:.80} is not supported; supported: {', '.join(ROPE_FACTORS)}")
    needed = ROPE_FACTORS[rope_type]
    if missing := [name for name in needed if name not in settings]:
        raise ValueError(f"rope type {rope_type!r} needs {', '.join(missing)}")
    if unread := sorted(settings.keys() - {*needed, *ROPE_OTHER_KEYS}):
        raise ValueError(f"rope type {rope_type!r} has no {printable(unread[0])}")
    factors = {name: _number(name, settings[name]) for name in needed}
    if rope_type == "llama3" and factors["high_freq_factor"] <= factors["low_freq_factor"]:
        raise ValueError(
            f"high_freq_factor: expected more than low_freq_factor ({factors['low_freq_factor']:g}), "
            f"got {factors['high_freq_factor']:g}"
        )
    return _number("rope_theta", theta), {"rope_type": rope_type, **factors}


def positive_int(raw: dict[str, Any], name: str, default: int | None = None) -> int:
    """raw[name], or the default where that is missing or null; ValueError that names the field."""
    value = raw.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r:.80}")
    if value > MAX_INT32:
        raise ValueError(f"{name}: expected at most {MAX_INT32}, got {value}")
    return value


def _flag(raw: dict[str, Any], name: str) -> bool:
    """raw[name], or False where that is missing or null."""
    value = raw.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name}: expected true or false, got {value!r:.80}")
    return bool(value)


def _number(name: str, value: Any, at_most: float = MAX_NUMBER) -> float:
    """A positive number that float32 holds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not MIN_NUMBER <= value <= at_most:
        limit = "" if at_most == MAX_NUMBER else f" of at most {at_most:g}"
        raise ValueError(f"{name}: expected a positive number{limit} in float32, got {value!r:.80}")
    return float(value)


def _token_ids(raw: dict[str, Any]) -> tuple[int, ...]:
    value = raw.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise ValueError(f"eos_token_id: expected a token id or a list of them, got {value!r:.80}")
    return tuple(ids)
