"""A model that the user has loaded, run on its own modules and left unchanged.

No module is replaced and no weight is copied, so each module (with adapters, or weights of few bits) runs its own
forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from batchllm.device.kv_cache import PagedKVCache
from batchllm.device.ops import Ops
from batchllm.device.step import Step
from batchllm.models.fields import Unsupported
from batchllm.models.transformers_attention import NAME, hand_attention_to
from batchllm.models.transformers_check import PackedCheck
from batchllm.models.transformers_config import TransformersConfig
from batchllm.models.transformers_model import ModulesPass

HELD_DTYPES = (torch.float32, torch.bfloat16)
TABLES = ("_parameters", "_buffers", "_modules")  # attributes of a module that are changed in place


class HeldModel(ModulesPass):
    """Made by `held`."""

    @torch.inference_mode()
    def __init__(self, config: TransformersConfig, model: PreTrainedModel) -> None:
        """Raises Unsupported if the modules give packed sequences other results than each alone."""
        super().__init__(config, model, model.dtype)
        self.is_held = True
        try:
            check = PackedCheck(model.eval(), config.vocab_size)
            hand_attention_to(self._attend, model)
            check.compare(self)
        except Exception as error:  # from whatever the model contains
            why = str(error) if isinstance(error, Unsupported) else f"{type(error).__name__}: {error}"
            raise Unsupported(f"architecture {config.architecture}: {why}") from error

    def pack_weights(self) -> None:
        """They stay as they are."""

    def forward(self, step: Step, kv_cache: PagedKVCache, ops: Ops) -> Tensor:
        if not self.is_held:
            raise RuntimeError("the model has been given back: its attention is no longer ours")
        return super().forward(step, kv_cache, ops)


def describe_held(model: PreTrainedModel) -> TransformersConfig:
    """Raises TypeError for anything but a PreTrainedModel, and Unsupported that says why a model does not run."""
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model: expected a PreTrainedModel of transformers, got {type(model).__name__}")
    name = type(model).__name__
    if model.config._attn_implementation == NAME:
        raise Unsupported(f"{name}: its attention is already {NAME!r}: two engines cannot run it at the same time")
    devices = sorted({str(tensor.device) for tensor in chain(model.parameters(), model.buffers())})
    if devices != ["cpu"]:
        raise Unsupported(f"{name} runs on a CPU alone, and its weights are on {' and '.join(devices)}")
    if model.dtype not in HELD_DTYPES:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in HELD_DTYPES)
        raise Unsupported(f"{name}: dtype: expected {expected}, got {str(model.dtype).removeprefix('torch.')}")
    return TransformersConfig.of_held(model)


@contextmanager
def held(config: TransformersConfig, model: PreTrainedModel) -> Iterator[HeldModel]:
    """Whatever happens meanwhile, every module of `model` afterwards has its original parts, attributes and
    attention."""
    modules = [
        (module, dict(vars(module)), {name: dict(vars(module)[name]) for name in TABLES}) for module in model.modules()
    ]
    configs = {id(module.config): module.config for module in model.modules() if isinstance(module, PreTrainedModel)}
    attention = [(of_module, of_module._attn_implementation_internal) for of_module in configs.values()]
    ours: HeldModel | None = None
    try:
        ours = HeldModel(config, model)
        yield ours
    finally:
        if ours is not None:
            ours.is_held = False
        for module, attributes, tables in modules:
            for name in vars(module).keys() - attributes.keys():
                del vars(module)[name]
            vars(module).update(attributes)
            for name, table in tables.items():
                vars(module)[name].clear()
                vars(module)[name].update(table)
        for of_module, implementation in attention:
            of_module._attn_implementation_internal = implementation
