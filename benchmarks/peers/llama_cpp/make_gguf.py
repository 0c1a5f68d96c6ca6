"""Writes a Llama model directory as a bfloat16 GGUF: python -m benchmarks.peers.llama_cpp.make_gguf DIR OUT.gguf

Without a tokenizer: benchmarks hand over token ids.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file


def write_gguf(directory: Path, path: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    num_layers, num_heads = config["num_hidden_layers"], config["num_attention_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(num_layers)
    writer.add_head_count(num_heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // num_heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, num_layers)
    for name, weight in load_file(directory / "model.safetensors").items():
        gguf_name = names.get_name(name, try_suffixes=(".weight",))
        if gguf_name is None:
            raise ValueError(f"{directory}: {name} is no tensor of a Llama model")
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = pair_rotary_rows(weight, num_heads if "q_proj" in name else config["num_key_value_heads"])
        if weight.ndim == 1:
            writer.add_tensor(gguf_name, weight.float().numpy())
        else:
            bits = weight.to(torch.bfloat16).contiguous().view(torch.uint16).numpy().view(np.uint8)
            writer.add_tensor(gguf_name, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pair_rotary_rows(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Hugging Face keeps the two halves of a rotary pair head_dim/2 rows apart; GGUF keeps them side by side."""
    rows, columns = weight.shape
    return weight.view(num_heads, 2, rows // num_heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("output", type=Path, metavar="OUT.gguf")
    options = parser.parse_args()
    write_gguf(options.directory, options.output)


if __name__ == "__main__":
    main()
