"""Tiny, randomly initialised Hugging Face models: 2 layers, 260 tokens, every weight drawn, biases and norms too.

The weights are large enough for attention to decide tokens, so a forgotten bias, norm or rotation changes outputs.
The tokenizer has one token per byte, so text splits wherever a test needs it to.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from batchllm.llm import LLM  # in the environment of vLLM, too, whose transformers the package itself refuses

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<end>")  # ids 0 to 3
NUM_SPECIAL = len(SPECIAL_TOKENS)
BOS, EOS = 1, 2
VOCAB_SIZE = NUM_SPECIAL + 256
MAX_MODEL_LEN = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}<bos>{{ message.role }}: {{ message.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant: {% endif %}"
)

SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_MODEL_LEN,
    "rms_norm_eps": 1e-5,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
PADDED = {"pad_token_id": 0}  # where the default is outside the vocabulary
WINDOW = 16
SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW}


@dataclass(frozen=True)
class Family:
    """A transformers architecture ("Llama") and what its config says besides SIZES."""

    architecture: str
    options: dict[str, Any] = field(default_factory=dict)

    def model(self, seed: int = 0) -> transformers.PreTrainedModel:
        config = getattr(transformers, f"{self.architecture}Config")(**(SIZES | self.options))
        model = getattr(transformers, f"{self.architecture}ForCausalLM")(config).float().eval()
        draw_weights(model, seed)
        return model


FAMILIES = {
    "llama": Family("Llama"),
    "llama-tied": Family("Llama", {"tie_word_embeddings": True}),
    "llama-bias": Family("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-llama3-rope": Family("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-linear-rope": Family(
        "Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}}
    ),
    "llama-yarn": Family("Llama", {"rope_parameters": YARN, "head_dim": 16}),
    "llama-yarn-scaled": Family(
        "Llama", {"rope_parameters": YARN | {"attention_factor": 1.3, "beta_fast": 8.0, "beta_slow": 2.0}}
    ),
    "llama-mha-wide-heads": Family("Llama", {"num_key_value_heads": 4, "head_dim": 16}),
    "mistral": Family("Mistral", {"sliding_window": None, "head_dim": 8}),
    "mistral-window": Family("Mistral", {"sliding_window": WINDOW, "head_dim": 8}),
    "qwen2": Family("Qwen2"),
    "qwen2-tied": Family("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": Family("Qwen2", SLIDING | {"max_window_layers": 1}),
    "qwen3": Family("Qwen3", {"head_dim": 16}),
    "qwen3-bias": Family("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "qwen3-tied": Family("Qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen3-window": Family("Qwen3", SLIDING | {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 16}),
    "smollm3-tied": Family("SmolLM3", PADDED | {"no_rope_layers": [1, 0]}),
    "smollm3-none-rotated": Family("SmolLM3", PADDED | {"no_rope_layers": [0, 0], "tie_word_embeddings": False}),
    "smollm3-tied-window": Family("SmolLM3", PADDED | SLIDING | {"no_rope_layer_interval": 2}),
}


@torch.no_grad()
def draw_weights(model: torch.nn.Module, seed: int) -> None:
    """Draws every parameter in the order of its name: norms around 1, biases around 0, matrices by fan-in."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith("norm.weight"):
            weight.copy_(1 + 0.4 * noise)
        elif name.endswith("bias"):
            weight.copy_(0.6 * noise)
        else:
            weight.copy_(1.5 * noise / weight.shape[-1] ** 0.5)


def save(model: transformers.PreTrainedModel, directory: Path, **options: Any) -> Path:
    model.save_pretrained(directory, **options)
    return directory


def save_tokenizer(directory: Path) -> None:
    """A byte-level tokenizer that opens a text with <bos>, and a chat template that does so by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)


def save_metaspace_tokenizer(directory: Path) -> None:
    """As Llama 2's: spaces are ▁, one is put before a text and taken off before what is decoded, and what the
    vocabulary does not have is spelled in bytes, which are tokens from NUM_SPECIAL on."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = [*"▁abcdefghijklmnopqrstuvwxyz", "▁t", "▁th", "▁the"]
    vocab = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *byte_tokens, *letters))}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<pad>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(strip)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)


def encode(llm: LLM, text: str) -> list[int]:
    """The tokens of a text, without an opening <bos>."""
    return llm.get_tokenizer()(text, add_special_tokens=False)["input_ids"]


def copy_with(source: Path, target: Path, file: str = "config.json", **changes: Any) -> Path:
    """A copy of a model directory in which one JSON file has other values; None removes a key."""
    shutil.copytree(source, target)
    values = json.loads((target / file).read_text()) | changes
    (target / file).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return target


def shared_prompts(num_prompts: int, seed: int = 0) -> list[list[int]]:
    """A shuffled tree of prompts: three documents under one header, with questions; prefixes of each other,
    duplicates, prompts of one token and loners among them."""
    generator = random.Random(seed)

    def text(length: int) -> list[int]:
        return [generator.randrange(NUM_SPECIAL, VOCAB_SIZE) for _ in range(length)]

    header = text(9)
    documents = [header + text(length) for length in (40, 17, 25)]
    prompts = [documents[0], documents[0][:-1], documents[1], documents[1], header, [5], [5]]
    while len(prompts) < num_prompts:
        document = generator.choice([*documents, documents[0], []])
        prompts.append(document + text(generator.choice([1, 2, 7, 15, 16])))
    generator.shuffle(prompts)
    return prompts[:num_prompts]
