"""Where text comes from when a directory has no tokenizer.json, and what is too long to be encoded."""

from types import SimpleNamespace

import pytest

from batchllm import LLM
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


LONGEST_TOKEN = len("<bos>")


def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded(directory, monkeypatch):
    tokenizer = Tokenizer(directory, max_tokens=10)
    assert len(tokenizer.encode(["<bos>" * 10])[0]) == 11  # <bos> opens a text
    assert len(tokenizer.encode(["x" * 10 * LONGEST_TOKEN])[0]) == 51  # only its tokens tell that it does not fit
    monkeypatch.setattr(Tokenizer, "hugging_face", lambda self: pytest.fail("encoded"))
    for text in ("x" * 51, " " * 10**8):
        with pytest.raises(ValueError, match=f"the prompt has {len(text):,} characters, and the model takes 10 tokens"):
            tokenizer.encode(["short", text])


def test_a_chat_that_cannot_fit_is_refused_before_it_is_encoded(directory):
    tokenizer = Tokenizer(directory, max_tokens=20)
    tokenizer.encode_chat([{"role": "user", "content": "x" * 50}])
    with pytest.raises(ValueError, match="the prompt has 116 characters"):
        tokenizer.encode_chat([{"role": "user", "content": "x" * 100}])


def test_a_prompt_of_a_list_that_cannot_fit_is_named(tiny_model, tmp_path):
    model = tiny.copy_with(tiny_model("llama"), tmp_path / "model")
    tiny.save_tokenizer(model)
    with pytest.raises(ValueError, match=r"^prompt 1: the prompt has 2,561 characters, and the model takes 512 tokens"):
        LLM(model).generate(["short", " " * (tiny.MAX_MODEL_LEN * LONGEST_TOKEN + 1)], use_tqdm=False)
