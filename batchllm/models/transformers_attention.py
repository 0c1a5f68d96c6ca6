"""The attention of transformers' modules, delegated to whatever runs the model.

transformers calls one function for the whole process, by name, and passes only the attending module of the model; so
every module carries the function to call for it.
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
    """A layer's call of attention. T = rows, H = heads, D = head_dim."""

    module: nn.Module
    query: Tensor  # [1, num_qo_heads, T, D]
    key: Tensor  # [1, num_kv_heads, T, D]
    value: Tensor  # [1, num_kv_heads, T, D]
    mask: Tensor | None
    scale: float | None
    window: int | None  # positions that a row sees, including its own
    soft_cap: float | None
    sinks: Tensor | None  # [num_qo_heads]
    others: dict[str, Any]


Attend = Callable[[AttentionCall], Tensor]  # gives [1, T, num_qo_heads, D]


def hand_attention_to(attend: Attend, model: PreTrainedModel) -> None:
    """Makes the layers of `model` call `attend`."""
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
    """The function that transformers calls. A layer's window is the argument: the module's own attribute may name one
    for a layer that has none."""
    call = AttentionCall(module, query, key, value, attention_mask, scaling, sliding_window, softcap, s_aux, others)
    return module.batchllm_attend(call), None


# No mask function is registered beside it, so transformers makes no masks at all.
AttentionInterface.register(NAME, _attend)
