"""Offline, large-batch LLM inference for prompts that share prefixes."""

from batchllm.api import LLM
from batchllm.outputs import CompletionOutput, JobProgress, RequestOutput
from batchllm.sampling_params import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "CompletionOutput", "JobProgress", "RequestOutput", "SamplingParams"]
