"""Tiny models, each made once; one thread for those that run them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from batchllm import LLM
from tests.engine import tiny


@contextmanager
def torch_threads_kept() -> Iterator[None]:
    """`LLM(num_threads=...)` sets torch's threads for the whole process: this sets them back."""
    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny matrices lose more to waking a second thread than it gives."""
    with torch_threads_kept():
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a family of `tiny.FAMILIES`, without a tokenizer."""
    made: dict[str, Path] = {}

    def directory(family: str) -> Path:
        if family not in made:
            made[family] = tiny.save(tiny.FAMILIES[family].model(), tmp_path_factory.mktemp(family) / "model")
        return made[family]

    return directory


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama directory with a byte-level tokenizer."""
    directory = tiny.save(tiny.FAMILIES["llama"].model(), tmp_path_factory.mktemp("tiny") / "model")
    tiny.save_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_llm(tiny_dir: Path) -> LLM:
    """An LLM on `tiny_dir` in float32; tests that look into its pool make their own."""
    with torch_threads_kept():
        return LLM(tiny_dir, dtype="float32", num_threads=1)


@pytest.fixture(scope="session")
def wide_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with heads that attention on a GPU is compiled for."""
    directory = tiny.save(tiny.Family("Llama", {"head_dim": 64}).model(), tmp_path_factory.mktemp("wide") / "model")
    tiny.save_tokenizer(directory)
    return directory


@pytest.fixture
def captures_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a GPU are replayed from the first one on."""
    monkeypatch.setattr("batchllm.engine.graphs.CAPTURED_AFTER", 0)
