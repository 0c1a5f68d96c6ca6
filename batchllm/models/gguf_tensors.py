"""The weights of a GGUF file under transformers' names and in its order of rows."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from batchllm.models.fields import naming, positive_int
from batchllm.models.gguf_config import ROPE_FACTORS, gguf_architecture
from batchllm.models.gguf_file import GgufTensor, read_gguf

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Gemma has two more norms, and its post_attention_norm is not what others call so.
GEMMA_NAMES = NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
GEMMA = {"gemma3"}  # architectures with those names; their files have 1 + w for a norm whose weight is w
PAIRED_ROWS = {"llama", "smollm3"}  # architectures that store the two rows of q and k that rotate together side by side


class GgufTensors:
    """A TensorSource of a GGUF file, or of all files of a model, given the first."""

    config = "its metadata"

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError, or ValueError that names the file and its invalid or unsupported part."""
        gguf = read_gguf(path)
        self._is_gemma = gguf.metadata.get("general.architecture") in GEMMA
        names = GEMMA_NAMES if self._is_gemma else NAMES
        self._tensors = {transformers_name(name, names): tensor for name, tensor in gguf.tensors.items()}
        self._tensors.pop(ROPE_FACTORS, None)  # the config has them
        self.files: Mapping[str, Path] = {name: tensor.file for name, tensor in self._tensors.items()}
        self._num_heads: dict[str, int] = {}  # of the projections whose rows are paired
        with naming(path):
            if (architecture := gguf_architecture(gguf.metadata)) in PAIRED_ROWS:
                num_heads = positive_int(gguf.metadata, f"{architecture}.attention.head_count")
                num_kv_heads = positive_int(gguf.metadata, f"{architecture}.attention.head_count_kv", num_heads)
                self._num_heads = {"q_proj": num_heads, "k_proj": num_kv_heads}
        self._open = ExitStack()
        self._handles: dict[Path, BinaryIO] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        tensor = self._tensors[name]
        if (num_heads := self._num_heads.get(name.split(".")[-2])) is None:
            rows = self._stored_rows(tensor, begin, end)
            return rows - 1 if self._is_gemma and name.endswith("norm.weight") else rows
        if len(tensor.shape) == 1:  # a bias
            return halves(self._stored_rows(tensor, 0, 1)[0], num_heads)[None]
        of_head = tensor.num_rows // num_heads
        first, last = begin // of_head, -(-end // of_head)  # whole heads
        rows = halves(self._stored_rows(tensor, first * of_head, last * of_head), last - first)
        return rows[begin - first * of_head : end - first * of_head]

    def adds_nothing(self, name: str) -> bool:
        return False

    def close(self) -> None:
        self._handles.clear()
        self._open.close()

    def _stored_rows(self, tensor: GgufTensor, begin: int, end: int) -> Tensor:
        return torch.from_numpy(tensor.rows(self._handle(tensor), begin, end))

    def _handle(self, tensor: GgufTensor) -> BinaryIO:
        if tensor.file not in self._handles:
            self._handles[tensor.file] = self._open.enter_context(tensor.file.open("rb"))
        return self._handles[tensor.file]


def transformers_name(name: str, names: Mapping[str, str] = NAMES) -> str:
    """blk.7.attn_q.weight -> model.layers.7.self_attn.q_proj.weight; unknown names stay."""
    stem, _, suffix = name.rpartition(".")
    block, layer = "", stem.split(".")
    if len(layer) == 3 and layer[0] == "blk":
        block, stem = f"model.layers.{layer[1]}.", layer[2]
    return f"{block}{names[stem]}.{suffix}" if stem in names else name


def halves(tensor: Tensor, num_heads: int) -> Tensor:
    """Reorders the rows of each head, so that the two of a pair are half a head apart instead of side by side."""
    pairs = tensor.view(num_heads, len(tensor) // num_heads // 2, 2, -1)
    return pairs.transpose(1, 2).reshape(tensor.shape)
