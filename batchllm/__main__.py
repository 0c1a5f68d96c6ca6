"""`batchllm`, or `python -m batchllm`: the command line, which needs packages that the library does not."""

from __future__ import annotations

import sys

NEEDED = ("typer", "rich")  # the extra [cli]


def main() -> None:
    try:
        from batchllm.cli import main as command
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        sys.exit(f"batchllm: the command line needs {error.name}: pip install 'batchllm-ext[cli]'")
    command()


if __name__ == "__main__":
    main()
