"""The description of a model, whatever runs it, for engines, KV pools and estimates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import batchllm_ext as ext
from batchllm.models.layer_spec import AttentionSpec, widest_window

# Bytes of an element, by the dtypes that config.json may name.
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True, kw_only=True)
class ModelDescription(ABC):
    """A decoder as its config.json describes it. Sizes are in elements."""

    backend: ClassVar[str]
    """What runs it: one of batchllm.options.BACKENDS except "auto"."""
    architecture: str
    vocab_size: int
    hidden_size: int
    max_model_len: int
    tie_word_embeddings: bool
    dtype: str = "bfloat16"  # of the checkpoint; in DTYPE_BYTES
    eos_token_ids: tuple[int, ...] = ()

    @property
    @abstractmethod
    def attention_of_layers(self) -> tuple[AttentionSpec, ...]:
        """The attention of each layer that has keys and values."""

    @property
    @abstractmethod
    def num_linear_parameters(self) -> int:
        """Weights in the layers that every token is multiplied with."""

    @property
    def num_stored_linear_parameters(self) -> int:
        """Those, and the weights of all experts of which each token is multiplied with some."""
        return self.num_linear_parameters

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """All parameters; tied embeddings count once."""

    @property
    def attention_kinds(self) -> tuple[AttentionSpec, ...]:
        """The distinct kinds of attention of the layers."""
        return tuple(dict.fromkeys(self.attention_of_layers))

    @property
    def kind_of_layer(self) -> tuple[int, ...]:
        """[num_layers] into attention_kinds."""
        kinds = self.attention_kinds
        return tuple(kinds.index(attention) for attention in self.attention_of_layers)

    @property
    def windows(self) -> tuple[int, ...]:
        """The distinct window_left of the layers: positions before its own that a row sees; -1: all."""
        return tuple(dict.fromkeys(attention.window_left for attention in self.attention_of_layers))

    def most_pages(self, page_size: int, max_batch_tokens: int) -> int | None:
        """The most KV pages that a request ever holds, however long it is; None: those of all its tokens."""
        return ext.BatchPlanner.most_segment_pages(
            page_size=page_size,
            max_batch_tokens=max_batch_tokens,
            window_left=widest_window(self.attention_kinds),
        )

    @property
    def kv_elements_per_token(self) -> int:
        """Elements of K and V per token, in all layers."""
        return sum(2 * attention.kv_size for attention in self.attention_of_layers)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of K and V per token, in all layers, in the checkpoint's dtype."""
        return self.kv_elements_per_token * DTYPE_BYTES[self.dtype]

    @property
    def num_logit_parameters(self) -> int:
        """Weights that every sampled row is multiplied with."""
        return self.vocab_size * self.hidden_size

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in the checkpoint's dtype."""
        return self.num_parameters * DTYPE_BYTES[self.dtype]

    def attention_flops(self, num_pairs: Callable[[int], Any]) -> Any:
        """FLOPs of attention in all layers: one product for the score, one for the value.

        num_pairs: by window_left, the pairs of a row and a position it sees; numbers or arrays.
        """
        layers = Counter(self.attention_of_layers).items()
        return sum(count * 4 * attention.q_size * num_pairs(attention.window_left) for attention, count in layers)

    def kv_bytes(self, num_tokens: Callable[[int], Any]) -> Any:
        """Bytes of K and V in all layers, in the checkpoint's dtype.

        num_tokens: by window_left, the tokens whose K and V it is about; numbers or arrays.
        """
        layers = Counter(self.attention_of_layers).items()
        elements = sum(count * 2 * attention.kv_size * num_tokens(attention.window_left) for attention, count in layers)
        return elements * DTYPE_BYTES[self.dtype]
