"""Where text comes from when a directory has no tokenizer.json."""

from types import SimpleNamespace

import pytest

from batchllm.sampling_params import SamplingParams
from batchllm.tokenizer import TOKENIZER_FILE, Tokenizer
from tests.engine import tiny


@pytest.fixture
def directory(tmp_path):
    tiny.save_tokenizer(tmp_path)
    return tmp_path


def test_without_tokenizer_json_the_tokenizer_is_transformers_own(directory, monkeypatch):
    token_ids = Tokenizer(directory).encode(["plain text"])[0]
    backend = Tokenizer(directory).backend()
    (directory / TOKENIZER_FILE).unlink()
    monkeypatch.setattr(Tokenizer, "hugging_face", lambda self: SimpleNamespace(backend_tokenizer=backend))
    assert Tokenizer(directory).decode(token_ids, SamplingParams()) == "plain text"


def test_a_tokenizer_that_is_not_fast_is_named(directory, monkeypatch):
    (directory / TOKENIZER_FILE).unlink()
    monkeypatch.setattr(Tokenizer, "hugging_face", lambda self: SimpleNamespace())
    with pytest.raises(ValueError, match=f"{directory}: expected a fast tokenizer"):
        Tokenizer(directory).backend()
