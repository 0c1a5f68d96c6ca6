"""A Hugging Face model directory or a GGUF file: where it is, what its config says, and whether the native decoder
supports it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from batchllm.models.description import DTYPE_BYTES, ModelDescription
from batchllm.models.families import Family, architecture_of, family_of, unsupported
from batchllm.models.fields import Unsupported, flag, naming, number, positive_int
from batchllm.models.gguf_config import gguf_config
from batchllm.models.gguf_file import SUFFIX, gguf_files, is_gguf
from batchllm.models.layer_spec import AttentionSpec, LayerSpec
from batchllm.models.quantization import read_quantization
from batchllm.models.rope import Rotation, read_rotation
from batchllm.sampling_params import SamplingParams
from batchllm.text import printable

MAX_LAYERS = 10_000  # bounds an untrusted number that memory is allocated for
CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
# Settings of generation_config.json that change sampling: ours by their names here, the others with their neutral
# values.
SAMPLING_SETTINGS = {
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")},
    "max_new_tokens": "max_tokens",
}
OTHER_SETTINGS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("encoder_repetition_penalty", "typical_p", "length_penalty"), (1,)),
    **dict.fromkeys(("top_h", "epsilon_cutoff", "eta_cutoff", "diversity_penalty"), (0,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), (0,)),
    **dict.fromkeys(("num_beams", "num_beam_groups", "guidance_scale"), (1,)),
    **dict.fromkeys(("penalty_alpha", "bad_words_ids", "force_words_ids", "constraints", "sequence_bias"), ()),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"), ()),
    **dict.fromkeys(("exponential_decay_length_penalty", "watermarking_config", "stop_strings", "dola_layers"), ()),
}
HUB_FILES_BUT_WEIGHTS = ["*.json", "*.jinja", "tokenizer*", "*.model"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ModelDescription):
    """A model that the native decoder runs."""

    backend = "native"

    layers: tuple[LayerSpec, ...]
    rms_norm_eps: float

    @classmethod
    def from_directory(cls, path: Path) -> ModelConfig:
        """Reads a config.json, a model directory, or the metadata of a GGUF file. The end-of-sequence ids are those of
        generation_config.json and its own, except any outside the vocabulary.

        Raises FileNotFoundError, Unsupported for an architecture or a setting that the decoder does not run, and
        ValueError for invalid files; each names the file and the field.
        """
        file = config_file(path)
        raw = read_config(file)
        with naming(file):
            config = _parse(raw)
        return replace(config, eos_token_ids=eos_token_ids(path, raw, config.vocab_size))

    @property
    def attention_of_layers(self) -> tuple[AttentionSpec, ...]:
        return tuple(layer.attention for layer in self.layers)

    @property
    def num_linear_parameters(self) -> int:
        return sum(layer.num_linear_parameters(self.hidden_size) for layer in self.layers)

    @property
    def num_parameters(self) -> int:
        in_layers = sum(layer.num_parameters(self.hidden_size) for layer in self.layers)
        embeddings = self.num_logit_parameters * (1 if self.tie_word_embeddings else 2)
        return in_layers + self.hidden_size + embeddings


def config_file(path: Path) -> Path:
    """The config.json of a directory, or the given file itself."""
    return path / CONFIG if path.is_dir() else path


def read_config(file: Path) -> dict[str, Any]:
    """The object in a config.json, or its equivalent for a GGUF file. Raises FileNotFoundError or ValueError that names
    the file and its fault."""
    if is_gguf(file):
        return gguf_config(file)
    if not file.exists() and (others := sorted(file.parent.glob(f"*{SUFFIX}"))):
        raise FileNotFoundError(f"{file}: not found, but {others[0].name} is there: give that file as the model")
    return read_json(file)


def eos_token_ids(path: Path, raw: dict[str, Any], vocab_size: int) -> tuple[int, ...]:
    """The ids named in a directory's generation_config.json and its config.json, `raw`, except any outside the
    vocabulary. Raises ValueError that names the file."""
    generation = _read_generation_config(path)
    with naming(path / GENERATION_CONFIG):
        ids = list(_token_ids(generation))
    with naming(config_file(path)):
        ids += _token_ids(raw)
    return tuple(dict.fromkeys(token for token in ids if 0 <= token < vocab_size))


def dtype_of(raw: dict[str, Any]) -> str:
    """The checkpoint's dtype, one of DTYPE_BYTES. Raises ValueError for another."""
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "bfloat16"
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPE_BYTES)}, got {dtype!r:.80}")
    return dtype


def sampling_defaults(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sampling settings in generation_config.json: fields of SamplingParams, and settings that we do not have.

    Raises ValueError that names the file and the field.
    """
    raw = _read_generation_config(directory)
    given = {ours: raw[name] for name, ours in SAMPLING_SETTINGS.items() if raw.get(name) is not None}
    with naming(directory / GENERATION_CONFIG):
        SamplingParams(**given)
    return given, other_settings(raw)


def other_settings(raw: dict[str, Any]) -> dict[str, Any]:
    """The settings of a generation_config.json that change sampling and that we do not have."""
    return {
        name: raw[name]
        for name, neutral in OTHER_SETTINGS.items()
        if raw.get(name) not in (None, False, [], {}, *neutral)
    }


def resolve_model(model: str | Path, *, weights: bool = True) -> Path:
    """The directory of `model`: a local one, or that of a Hugging Face hub id, fetched with or without weights into the
    hub's cache; or a GGUF file itself.

    Raises FileNotFoundError that says what was sought and where.
    """
    path = Path(model).expanduser()
    if path.is_dir() or (path.is_file() and is_gguf(path)):
        return path
    if not is_hub_id(model):
        kind = "is a file, not a model directory or a .gguf file" if path.exists() else "no such directory"
        raise FileNotFoundError(f"model {str(model)!r}: {kind}")
    from huggingface_hub import snapshot_download

    try:
        patterns = [*HUB_FILES_BUT_WEIGHTS, *(["*.safetensors"] if weights else [])]
        return Path(snapshot_download(str(model), allow_patterns=patterns))
    except Exception as error:
        reason = printable(str(error).strip().partition("\n")[0])
        raise FileNotFoundError(
            f"model {str(model)!r}: no such directory, and fetching it from the Hugging Face hub failed; give a "
            f"directory with config.json, a tokenizer and safetensors ({type(error).__name__}: {reason})"
        ) from error


def is_hub_id(model: str | Path) -> bool:
    """Whether that is not a directory but can be the name of a model on the Hugging Face hub."""
    return not Path(model).expanduser().exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)) is not None


def model_files(model: str | Path) -> list[Path]:
    """The files read for a local model or its config.json; none for a hub id."""
    path = Path(model).expanduser()
    if path.is_file():
        return gguf_files(path)
    patterns = (*HUB_FILES_BUT_WEIGHTS, "*.safetensors")
    return [file for pattern in patterns for file in path.glob(pattern) if file.exists()]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises FileNotFoundError or ValueError that names the file, and the field if a number
    is not finite."""
    check_regular(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: not found; a model directory has a config.json") from None
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON: nested too deeply") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # encoding, syntax, or a number with too many digits
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    for name, infinite in _not_finite(value):
        raise ValueError(f"{path}: {printable(name)}: expected a finite number, got {infinite}")
    return value


def check_regular(path: Path) -> None:
    """Raises ValueError for a file that would block (a FIFO) or cannot be read (a directory)."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a regular file")


def _not_finite(value: Any) -> Iterator[tuple[str, float]]:
    """Every infinite or NaN number in a JSON value, with its field, such as "rope_scaling.factor"."""
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
    """Raises ValueError for invalid settings and then, if all are valid, Unsupported for those that the decoder does
    not run."""
    if experts := next((name for name in raw if "experts" in name and raw[name]), None):
        raise Unsupported(f"{printable(experts)}: mixture-of-experts models are not supported")
    read_quantization(raw)
    family, refusals = family_of(raw), []
    if architecture_of(raw) != family.architecture:
        refusals.append(unsupported(raw))
    activation = printable(str(raw.get("hidden_act") or raw.get("hidden_activation") or "silu"))
    activation = "silu" if activation == "swish" else activation  # two names of one function
    if activation != "silu":
        refusals.append(f"hidden_act: expected silu, got {activation}")
    config = ModelConfig(
        architecture=family.architecture,
        vocab_size=positive_int(raw, "vocab_size"),
        hidden_size=positive_int(raw, "hidden_size"),
        layers=_layers(raw, family, read_rotation(raw, family.rope_theta, refusals.append)),
        max_model_len=positive_int(raw, "max_position_embeddings"),
        rms_norm_eps=number("rms_norm_eps", raw.get("rms_norm_eps", 1e-6), at_most=1.0),
        tie_word_embeddings=flag(raw, "tie_word_embeddings", family.tie_word_embeddings),
        dtype=dtype_of(raw),
    )
    if refusals:
        raise Unsupported(refusals[0])
    return config


def _layers(raw: dict[str, Any], family: Family, rotation: Rotation) -> tuple[LayerSpec, ...]:
    num_qo_heads = positive_int(raw, "num_attention_heads")
    num_kv_heads = positive_int(raw, "num_key_value_heads", num_qo_heads)
    if num_qo_heads % num_kv_heads:
        raise ValueError(
            f"num_attention_heads ({num_qo_heads}) is not a multiple of num_key_value_heads ({num_kv_heads})"
        )
    head_dim = positive_int(raw, "head_dim", family.head_dim or positive_int(raw, "hidden_size") // num_qo_heads)
    if head_dim % 2:
        raise ValueError(f"head_dim: expected an even number, got {head_dim}")
    attention_bias = family.reads_attention_bias and flag(raw, "attention_bias")
    layer = LayerSpec(
        attention=AttentionSpec(num_qo_heads, num_kv_heads, head_dim, softmax_scale=1 / math.sqrt(head_dim)),
        rotation=rotation,
        intermediate_size=positive_int(raw, "intermediate_size"),
        qkv_bias=family.qkv_bias or attention_bias,
        o_bias=attention_bias,
        mlp_bias=family.reads_mlp_bias and flag(raw, "mlp_bias"),
        qk_norm=family.qk_norm,
    )
    num_layers = positive_int(raw, "num_hidden_layers", at_most=MAX_LAYERS)
    longest = positive_int(raw, "max_position_embeddings")
    return tuple(
        replace(
            layer,
            attention=layer.attention.sliding(window, longest),
            rotation=rotation if is_rotated else None,
        )
        for window, is_rotated in zip(family.windows(raw, num_layers), family.rotated(raw, num_layers), strict=True)
    )


def _token_ids(raw: dict[str, Any]) -> tuple[int, ...]:
    value = raw.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise ValueError(f"eos_token_id: expected a token id or a list of them, got {value!r:.80}")
    return tuple(ids)
