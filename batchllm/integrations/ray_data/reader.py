"""The driver's view of a model, without weights: it tokenizes prompts and plans with them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from batchllm.estimate.devices import THIS_CPU, device_by_name
from batchllm.estimate.roofline import DEVICES, Device
from batchllm.jobs.read_job import WeightlessModel
from batchllm.models.backend import describe_model
from batchllm.models.config import is_hub_id, resolve_model, sampling_defaults
from batchllm.options import EngineOptions
from batchllm.requests import RequestLimits


class WeightlessReader(WeightlessModel):
    """Accepts what a replica may accept; the replica checks again whether its KV pool holds it."""

    def __init__(self, model: str | Path, engine: EngineOptions) -> None:
        """Raises FileNotFoundError or ValueError that names the file and the field."""
        directory = resolve_model(model).absolute()
        self.name = str(model if is_hub_id(model) else directory)  # by which a replica finds it
        self.config = describe_model(directory, engine.backend)
        self.sampling_defaults: dict[str, Any] = {}
        if engine.generation_config == "auto":
            self.sampling_defaults, _ = sampling_defaults(directory)
        kv_cache_tokens = engine.kv_cache_tokens or self.config.max_model_len + engine.page_size
        limits = RequestLimits(
            self.config.vocab_size,
            self.config.max_model_len,
            engine.page_size,
            kv_cache_tokens,
            most_pages=self.config.most_pages(engine.page_size, engine.max_batch_tokens),
        )
        super().__init__(directory, limits, allow_special_tokens=engine.allow_special_tokens)
        self._engine = engine

    @cached_property
    def device(self) -> Device:
        """What costs are predicted for. Raises ValueError for what it does not multiply."""
        if self._engine.device == "cuda":
            return DEVICES["h100"]
        return device_by_name(THIS_CPU, self._engine.dtype, self._engine.quantize)
