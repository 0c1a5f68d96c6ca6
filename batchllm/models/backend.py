"""What runs a model: the native decoder, or transformers' own modules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from batchllm.models.config import ModelConfig
from batchllm.models.description import ModelDescription
from batchllm.models.fields import Unsupported

if TYPE_CHECKING:
    import torch

    from batchllm.models.forward_pass import ForwardPass


def describe_model(path: Path, backend: str = "auto") -> ModelDescription:
    """Reads a config.json, a model directory or a GGUF file, for running the model and for estimates.

    backend: "native", "transformers", or "auto", which takes "transformers" if "native" does not run the model.

    Raises FileNotFoundError, or ValueError that names the file and its missing, invalid or unsupported part.
    """
    if backend != "transformers":
        try:
            return ModelConfig.from_directory(path)
        except Unsupported:
            if backend == "native":
                raise
    from batchllm.models.transformers_config import TransformersConfig

    return TransformersConfig.from_directory(path)


def load_model(
    config: ModelDescription, path: Path, dtype: torch.dtype, device: torch.device, quantize: str | None
) -> ForwardPass:
    """The model of a directory or a GGUF file. Raises ValueError for weights that do not match `config`."""
    import torch

    from batchllm.models.weights import WeightReader

    if isinstance(config, ModelConfig) and quantize is None:
        from batchllm.models.decoder import Model

        with WeightReader(path, dtype, device) as reader:
            return Model(config, reader)
    if isinstance(config, ModelConfig):
        from batchllm.models.int8_decoder import Int8Model

        with WeightReader(path, torch.float32) as reader:
            return Int8Model(config, reader, dtype)
    from batchllm.models.transformers_config import TransformersConfig
    from batchllm.models.transformers_model import TransformersModel

    assert isinstance(config, TransformersConfig)
    with WeightReader(path, dtype, device) as reader:
        return TransformersModel(config, reader, in_8_bits=quantize is not None)
