"""The command line."""

from batchllm.cli import report  # noqa: F401  (a command)
from batchllm.cli.commands import app, main

__all__ = ["app", "main"]
