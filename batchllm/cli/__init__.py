"""The command line, one file per command."""

from batchllm.cli import merge, plan, report, run, score  # noqa: F401  (the commands)
from batchllm.cli.app import app, main

__all__ = ["app", "main"]
