"""The command line."""

from batchllm.cli.commands import app, main

__all__ = ["app", "main"]
