"""Offline, large-batch LLM inference for prompts that share prefixes."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from batchllm.dependencies import check_dependencies

# OpenMP's threads wait for each other by spinning, by default for a few ms, which costs a busy machine most of its
# time. This many turns take about 0.03 ms, which costs an idle machine nothing. The variable is read when torch or
# batchllm_ext loads libgomp; a user's own setting stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

if TYPE_CHECKING:
    from batchllm.async_llm import AsyncLLM
    from batchllm.cpp_package import get_cmake_dir, get_include
    from batchllm.jobs.job import run_job
    from batchllm.jobs.run import JobSummary
    from batchllm.llm import LLM
    from batchllm.outputs import CompletionOutput, JobProgress, Logprob, RequestOutput
    from batchllm.sampling.rules import LogitsRule
    from batchllm.sampling_params import SamplingParams, StructuredOutputsParams

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "JobProgress",
    "JobSummary",
    "LogitsRule",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "get_cmake_dir",
    "get_include",
    "run_job",
]

_MODULES = {
    "AsyncLLM": "async_llm",
    "LLM": "llm",
    "LogitsRule": "sampling.rules",
    "Logprob": "outputs",
    "CompletionOutput": "outputs",
    "JobProgress": "outputs",
    "JobSummary": "jobs.run",
    "RequestOutput": "outputs",
    "SamplingParams": "sampling_params",
    "StructuredOutputsParams": "sampling_params",
    "get_cmake_dir": "cpp_package",
    "get_include": "cpp_package",
    "run_job": "jobs.job",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use: `batchllm --help` does not wait for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_dependencies()
    return getattr(import_module(f"batchllm.{_MODULES[name]}"), name)
