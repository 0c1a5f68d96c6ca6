"""Fixtures for every folder of tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory; `make test` fetches it."""
    directory = Path(os.environ.get("BATCHLLM_TEST_MODEL", ROOT / "models" / "smollm2-135m-instruct"))
    if not (directory / "config.json").exists():
        pytest.fail(f"{directory} is missing: run `make models/smollm2-135m-instruct/config.json` (or `make test`)")
    return directory
