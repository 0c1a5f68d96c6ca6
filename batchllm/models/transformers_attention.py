"""The attention of transformers' modules, handed to whoever runs the model.

transformers calls one function for a whole process, by its name, with the module that attends and nothing else of the
model; so every module carries what is to be called for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

NAME = "batchllm"  # of the function, in transformers' terms an attn_implementation


@dataclass
class AttentionCall:
    """What a layer asks for. T = rows, H = heads, D = head_dim."""

    module: nn.Module
    query: Tensor  # [1, num_qo_heads, T, D]
    key: Tensor  # [1, num_kv_heads, T, D]
    value: Tensor  # [1, num_kv_heads, T, D]
    mask: Tensor | None
    scale: float | None
    window: int | None  # positions that a row sees, its own included
    soft_cap: float | None
    sinks: Tensor | None  # [num_qo_heads]
    others: dict[str, Any]


Attend = Callable[[AttentionCall], Tensor]  # gives [1, T, num_qo_heads, D]


def hand_attention_to(attend: Attend, model: PreTrainedModel) -> None:
    """From now on `attend` is what the layers of `model` call."""
    model.set_attn_implementation(NAME)
    for module in model.modules():
        module.batchllm_attend = attend  # type: ignore[assignment]


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it. A layer's window is the one that comes here: the module's own attribute may say one
    for a layer that has none."""
    call = AttentionCall(module, query, key, value, attention_mask, scaling, sliding_window, softcap, s_aux, others)
    return module.batchllm_attend(call), None


# No mask function is registered beside it, so transformers makes no masks at all.
AttentionInterface.register(NAME, _attend)
