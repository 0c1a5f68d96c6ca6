"""The tokenizer and the chat template that a GGUF file holds, as a fast tokenizer of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers

from batchllm.models.gguf_file import read_gguf

KINDS = ("gpt2", "llama")  # byte-level BPE, and SentencePiece's
# By tokenizer.ggml.pre, those without a regular expression in transformers: GPT-2's, and the same with single digits.
GPT2_SPLITS = {"gpt-2": False, "smollm": True}
# Tokenizers that encode a word that is a token as that token, whatever their merges give.
WHOLE_WORDS = {"llama3", "llama-v3", "llama-bpe"}


def has_tokenizer(path: Path) -> bool:
    return read_gguf(path).metadata.get("tokenizer.ggml.model") not in (None, "none", "no_vocab")


def load_gguf_tokenizer(path: Path) -> Any:
    """Raises ValueError that names the field for an unknown kind of tokenizer: one that splits text differently would
    silently give different tokens."""
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    architecture, stored, settings = get_gguf_tokenizer(str(path))
    kind, split = stored.get("tokenizer_type"), stored.get("pre_tokenizer_type")
    if kind not in KINDS:
        raise ValueError(f"tokenizer.ggml.model: expected one of {', '.join(KINDS)}, got {kind!r:.80}")
    if kind == "gpt2" and split not in (known := GPT2_SPLITS.keys() | GGUF_PRE_TOKENIZER_SPLITS.keys()):
        raise ValueError(f"tokenizer.ggml.pre: expected one of {', '.join(sorted(known))}, got {split!r:.80}")
    # transformers 5.20, the last for Python 3.10, leaves these out.
    metadata = read_gguf(path).metadata
    ends = {name: metadata.get(f"tokenizer.ggml.{name}") for name in ("add_bos_token", "add_eos_token")}
    settings |= {name: value for name, value in ends.items() if value is not None}
    if kind == "llama":
        settings.setdefault("add_bos_token", True)
    backend, _ = convert_gguf_tokenizer(architecture, stored)
    if kind == "llama" and not stored.get("add_prefix_space", True):
        _leave_first_space(backend)
    elif kind == "gpt2" and split in GPT2_SPLITS:
        digits = [pre_tokenizers.Digits(individual_digits=True)] if GPT2_SPLITS[split] else []
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    elif split in WHOLE_WORDS:
        backend.model.ignore_merges = True
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **settings)


def _leave_first_space(backend: Tokenizer) -> None:
    """No space is put before a text, and none removed when decoding."""
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
