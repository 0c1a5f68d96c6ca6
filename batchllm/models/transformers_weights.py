"""Loads a checkpoint into transformers' modules with our reader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
        kind: Any = type(empty)
        model, report = kind.from_pretrained(
            None,
            config=config.hugging_face,
            state_dict=tensors,
            dtype=reader.dtype,
            attn_implementation="eager",
            output_loading_info=True,
        )
    assert not report["missing_keys"], report  # which would be drawn at random
    loaded: PreTrainedModel = model.eval()
    return loaded


def _take_all(empty: PreTrainedModel, reader: WeightReader) -> dict[str, Tensor]:
    """The tensors of the checkpoint under the names and in the shapes in which transformers would save the model; those
    of experts, which it saves one by one, stacked as in the model, so that they are in memory once."""
    tied, prefix = empty.all_tied_weights_keys, f"{empty.base_model_prefix}."
    state = empty.state_dict()
    untied = {name: tensor for name, tensor in state.items() if name not in tied}
    dtype, kept = reader.dtype, tuple(empty._keep_in_fp32_modules_strict or ())
    tensors = {}
    left = revert_weight_conversion(empty, untied)
    for name, tensor in untied.items():
        if parts := _parts(name, tensor, empty):
            num_rows = {_stored(part, prefix, reader): count for part, count in parts.items()}
            reader.dtype = torch.float32 if any(part in name for part in kept) else dtype
            tensors[name] = reader.take_stacked(num_rows, tensor.shape[-1]).view(tensor.shape)
            left = {part: tensor for part, tensor in left.items() if part not in parts}
    for name, tensor in left.items():
        reader.dtype = torch.float32 if any(part in name for part in kept) else dtype
        tensors[name] = reader.take(_stored(name, prefix, reader), *tensor.shape)
    reader.dtype = dtype
    for alias, name in tied.items():
        for stored in revert_weight_conversion(empty, {alias: state[alias]}):
            if name in tensors:
                of = _stored(name, prefix, reader)
                reader.drop_copy(_stored(stored, prefix, reader), *tensors[name].shape, of=of)
    return tensors


def _parts(name: str, tensor: Tensor, empty: PreTrainedModel) -> dict[str, int]:
    """The tensors that are saved in place of a stacked one, in the order in which their rows lie in it, with the number
    of these rows. Empty if it is not stacked, or not by whole rows."""
    if tensor.dim() != 3:
        return {}
    numbered = torch.arange(tensor[..., 0].numel()).view(*tensor.shape[:2], 1).expand(-1, -1, 2)  # each row by itself
    saved = revert_weight_conversion(empty, {name: numbered})
    if any(rows.shape[1:] != (2,) for rows in saved.values()):
        return {}
    saved = dict(sorted(saved.items(), key=lambda part: int(part[1][0, 0])))
    if not torch.equal(torch.cat(list(saved.values())), numbered.flatten(0, 1)):
        return {}
    return {part: len(rows) for part, rows in saved.items()}


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
