"""Loads a checkpoint into transformers' modules with our reader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging

from batchllm.models.transformers_config import TransformersConfig, on_meta
from batchllm.models.weights import WeightReader


def load_weights(config: TransformersConfig, reader: WeightReader) -> PreTrainedModel:
    """The model in the reader's dtype, with transformers' attention, using the tensors that were read without a copy.
    Raises ValueError for a tensor that is missing, misshapen, or unknown to the model."""
    empty = on_meta(config.hugging_face, reader.dtype)
    tensors = _take_all(empty, reader)
    reader.finish(empty._keys_to_ignore_on_load_unexpected or ())
    with _silent():
        model: PreTrainedModel = type(empty).from_pretrained(
            None,
            config=config.hugging_face,
            state_dict=tensors,
            dtype=reader.dtype,
            attn_implementation="eager",
        )
    model.eval()
    return model


def _take_all(empty: PreTrainedModel, reader: WeightReader) -> dict[str, Tensor]:
    """The tensors of the checkpoint under the names and in the shapes in which transformers would save the model, such
    as one tensor per expert."""
    tied, prefix = empty.all_tied_weights_keys, f"{empty.base_model_prefix}."
    state = empty.state_dict()
    dtype, kept = reader.dtype, tuple(empty._keep_in_fp32_modules_strict or ())
    tensors = {}
    for name, tensor in revert_weight_conversion(empty, {n: t for n, t in state.items() if n not in tied}).items():
        reader.dtype = torch.float32 if any(part in name for part in kept) else dtype
        tensors[name] = reader.take(_stored(name, prefix, reader), *tensor.shape)
    reader.dtype = dtype
    for alias, name in tied.items():
        for stored in revert_weight_conversion(empty, {alias: state[alias]}):
            if name in tensors:
                of = _stored(name, prefix, reader)
                reader.drop_copy(_stored(stored, prefix, reader), *tensors[name].shape, of=of)
    return tensors


def _stored(name: str, prefix: str, reader: WeightReader) -> str:
    """Its name in the checkpoint: a checkpoint of the base model alone has names without that prefix."""
    short = name.removeprefix(prefix)
    return short if name not in reader and short in reader else name


@contextmanager
def _silent() -> Iterator[None]:
    """Without transformers' progress bars."""
    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()
