"""The tokenizer of a GGUF file gives the tokens of the tokenizer that the file was made from."""

import json
from pathlib import Path
from typing import Any

import pytest

from batchllm.tokenizer import Tokenizer
from tests.engine import tiny
from tests.engine.gguf_models import write_gguf

TEXTS = ["Hello, world!", " two  spaces\n\n\tand  one ", "naïve café 🙂", "it's 12345.67", "<bos>user<end>", ""]
BYTE, CONTROL, NORMAL = 6, 3, 1  # types of tokens
METASPACE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": None,
    "tokenizer.ggml.add_bos_token": None,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.gguf"


def tokenizer_of(path: Path, **metadata: Any) -> Tokenizer:
    """The tokenizer of a file with other tokenizer metadata."""
    changes = {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}
    write_gguf(path, tiny.FAMILIES["llama"].model(), metadata=changes)
    return Tokenizer(path)


def test_texts_and_chats_are_encoded_as_by_the_original(path):
    tiny.save_tokenizer(path.parent / "original")
    ours, original = tokenizer_of(path), Tokenizer(path.parent / "original")
    assert ours.exists
    assert ours.encode(TEXTS) == original.encode(TEXTS)
    messages = [{"role": "user", "content": "Hello <end>"}]
    chats = [tokenizer.encode_chat(messages, add_generation_prompt=True) for tokenizer in (ours, original)]
    assert chats[0] == chats[1]
    assert ours.eos_token_ids == original.eos_token_ids == (tiny.EOS,)
    assert ours.hugging_face().decode(chats[0]) == original.hugging_face().decode(chats[1])


@pytest.mark.parametrize("add_space_prefix", [True, False])
def test_a_sentencepiece_vocabulary_gives_the_tokens_of_the_original(path, add_space_prefix):
    tiny.save_metaspace_tokenizer(path.parent / "original")
    original = Tokenizer(path.parent / "original")
    vocabulary = original.hugging_face().get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = [CONTROL] * tiny.NUM_SPECIAL + [BYTE] * 256 + [NORMAL] * (len(tokens) - tiny.NUM_SPECIAL - 256)
    # The sooner a merge is made, the higher its token's score.
    scores = [0.0] * (len(tokens) - 3) + [-1.0, -2.0, -3.0]
    model = tiny.Family("Llama", {"vocab_size": len(tokens)}).model()
    vocabulary_metadata = {
        "tokens": tokens,
        "token_type": kinds,
        "scores": scores,
        "add_space_prefix": add_space_prefix,
    }
    changes = {f"tokenizer.ggml.{name}": value for name, value in vocabulary_metadata.items()}
    write_gguf(path, model, metadata=METASPACE | changes)
    ours = Tokenizer(path)
    texts = ["the cat", "a  the é", "the"]
    if add_space_prefix:
        assert ours.encode(texts) == original.encode(texts)
    else:
        assert ours.encode([" the cat"], add_special_tokens=False) == original.encode(
            ["the cat"], add_special_tokens=False
        )
        (ids,) = ours.encode(["cat the"], add_special_tokens=False)
        assert ours.hugging_face().decode(ids) == "cat the"


def test_smollm2_splits_digits_and_reads_its_merges(smollm2, path):
    stored = json.loads((smollm2 / "tokenizer.json").read_text())
    vocabulary = stored["model"]["vocab"]
    special = {token["content"] for token in stored["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    ours = tokenizer_of(
        path,
        pre="smollm",
        tokens=tokens,
        token_type=[CONTROL if token in special else NORMAL for token in tokens],
        merges=[" ".join(merge) for merge in stored["model"]["merges"]],
        scores=None,
        bos_token_id=1,
        eos_token_id=2,
        add_bos_token=False,
    )
    texts = [*TEXTS, (Path(__file__).parents[2] / "examples" / "documents.jsonl").read_text()[:20_000]]
    assert ours.encode(texts) == Tokenizer(smollm2).encode(texts)


def test_a_word_of_llama_3_that_is_a_token_is_that_token(path):
    alphabet = sorted(tiny.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*tiny.SPECIAL_TOKENS, *alphabet[:-1], "word"]  # no merge makes it
    options = {"tokens": tokens, "add_bos_token": False}
    assert tokenizer_of(path, pre="llama-bpe", **options).encode(["word"]) == [[len(tokens) - 1]]
    assert len(tokenizer_of(path, pre="gpt-2", **options).encode(["word"])[0]) == 4


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"pre": "chameleon"}, "tokenizer.ggml.pre: expected one of .*, smollm, .*, got 'chameleon'"),
        ({"pre": None}, "tokenizer.ggml.pre: expected one of .*, got None"),
        ({"model": "bert"}, "tokenizer.ggml.model: expected one of gpt2, llama, got 'bert'"),
        ({"tokens": None}, "KeyError"),
        ({"bos_token_id": 10**6}, "IndexError"),
    ],
)
def test_a_tokenizer_that_is_not_known_is_refused(path, metadata, message):
    with pytest.raises(ValueError, match=f"^{path}: cannot load a tokenizer: {message}"):
        tokenizer_of(path, **metadata).hugging_face()


@pytest.mark.parametrize("kind", [None, "none", "no_vocab"])
def test_a_file_may_have_no_tokenizer(path, kind):
    tokenizer = tokenizer_of(path, model=kind)
    assert not tokenizer.exists
    assert tokenizer.eos_token_ids == ()
