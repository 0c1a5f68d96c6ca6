"""Offline, large-batch LLM inference for prompts that share prefixes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchllm.llm import LLM
    from batchllm.outputs import CompletionOutput, JobProgress, RequestOutput
    from batchllm.sampling_params import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "CompletionOutput", "JobProgress", "RequestOutput", "SamplingParams"]

_MODULES = {
    "LLM": "llm",
    "CompletionOutput": "outputs",
    "JobProgress": "outputs",
    "RequestOutput": "outputs",
    "SamplingParams": "sampling_params",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use: `batchllm --help` does not wait for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"batchllm.{_MODULES[name]}"), name)
