"""One tokenizer encodes and decodes; what is wrong with its files is said once, when it is loaded."""

import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tokenizers

from batchllm import LLM
from batchllm.sampling_params import SamplingParams
from batchllm.tokenizer import TOKENIZER_CONFIG, TOKENIZER_FILE, Tokenizer
from tests.engine import tiny


@pytest.fixture
def directory(tmp_path):
    tiny.save_tokenizer(tmp_path)
    return tmp_path


def configure(directory, file=TOKENIZER_CONFIG, **changes) -> None:
    path = directory / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


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


@pytest.mark.parametrize("named_class", ["PreTrainedTokenizerFast", "LlamaTokenizerFast", "Qwen2Tokenizer", None])
@pytest.mark.parametrize("save", [tiny.save_tokenizer, tiny.save_metaspace_tokenizer])
def test_tokenizer_json_is_taken_as_it_is_whatever_class_is_named(tmp_path, save, named_class):
    save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    configure(tmp_path, tokenizer_class=named_class)
    plain, tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / TOKENIZER_FILE)), Tokenizer(tmp_path)
    for text in ("hello world", "  two  spaces ", "a\nb\t", "naïve 東京 🙂", "<eos>x", "x <bos> y", " ", ""):
        (token_ids,) = tokenizer.encode([text])
        assert token_ids == plain.encode(text).ids
        for skip in (True, False):
            params = SamplingParams(skip_special_tokens=skip)
            assert tokenizer.decode(token_ids, params) == plain.decode(token_ids, skip_special_tokens=skip)


def test_a_transformers_that_cannot_take_special_tokens_as_text_is_refused(directory, monkeypatch):
    from transformers.utils import chat_template_utils

    monkeypatch.delattr(chat_template_utils, "encode_marked_chat")
    monkeypatch.delattr(chat_template_utils, "mark_control_tokens")
    for encode in (Tokenizer(directory).encode, Tokenizer(directory).encode_chat):
        with pytest.raises(ValueError, match=r"^transformers .* is too old: 5.20.2 or later is needed$"):
            encode([{"role": "user", "content": "a"}])


def test_a_transformers_that_reads_the_file_differently_is_refused(directory, monkeypatch):
    import transformers

    other = Tokenizer(directory).hugging_face()
    other.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "from_pretrained", lambda *_, **__: other)
    with pytest.raises(ValueError, match=f"^{directory}: .*{TOKENIZER_FILE} has .*transformers .* reads it as"):
        Tokenizer(directory).encode(["a"])


@pytest.mark.parametrize(
    "files",
    [
        {TOKENIZER_CONFIG: {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}},
        {TOKENIZER_CONFIG: {"auto_map": ["evil.Evil", None]}},
        {"config.json": {"auto_map": {"AutoConfig": "evil.Evil"}, "model_type": "zzz"}, TOKENIZER_FILE: None},
    ],
)
def test_python_of_a_model_directory_is_never_run(directory, monkeypatch, files):
    (directory / "evil.py").write_text(f"open({str(directory / 'ran')!r}, 'w')\nclass Evil: model_type = 'zzz'\n")
    for file, changes in files.items():
        if changes is None:
            (directory / file).unlink()
        else:
            configure(directory, file, **changes)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    with pytest.raises(ValueError, match=f"^{directory}"):
        Tokenizer(directory).encode(["a"])
    assert not (directory / "ran").exists()


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        (TOKENIZER_FILE, "{", f"/{TOKENIZER_FILE}: cannot load a tokenizer: "),
        (TOKENIZER_FILE, '{"model": 5}', f"/{TOKENIZER_FILE}: cannot load a tokenizer: "),
        (TOKENIZER_CONFIG, "[1]", f"/{TOKENIZER_CONFIG}: expected a JSON object, got list"),
        (TOKENIZER_CONFIG, "[" * 100_000, f"/{TOKENIZER_CONFIG}: not valid JSON: nested too deeply"),
        (TOKENIZER_CONFIG, '{"model_max_length": "x"}', f"/{TOKENIZER_CONFIG}: model_max_length: expected a number"),
        (TOKENIZER_CONFIG, '{"chat_template": 5}', f"/{TOKENIZER_CONFIG}: chat_template: expected text, got 5"),
        (TOKENIZER_CONFIG, '{"added_tokens_decoder": 5}', ": cannot load a tokenizer: "),
        (TOKENIZER_CONFIG, '{"eos_token": 5}', ": cannot load a tokenizer: "),
        (TOKENIZER_CONFIG, '{"auto_map": 5}', f"/{TOKENIZER_CONFIG}: auto_map: "),
    ],
)
def test_a_broken_file_is_named_before_anything_runs(tiny_dir, tmp_path, file, text, reason):
    directory = tiny.copy_with(tiny_dir, tmp_path / "model")
    (directory / file).write_text(text)
    with pytest.raises(ValueError, match=f"^{directory}{reason}"):
        LLM(directory, dtype="float32")


@pytest.mark.parametrize("file", [TOKENIZER_FILE, TOKENIZER_CONFIG, "chat_template.jinja"])
def test_a_fifo_is_named_and_not_waited_for(directory, file):
    (directory / file).unlink()
    os.mkfifo(directory / file)
    with pytest.raises(ValueError, match=f"^{directory / file}: not a regular file$"):
        Tokenizer(directory).encode(["a"])


def test_what_transformers_says_of_a_model_is_printable(directory):
    """In a process of its own: the handler holds the standard error that it began with. Without tokenizer.json there is
    nothing to load, but config.json is read."""
    (directory / TOKENIZER_FILE).unlink()
    (directory / "config.json").write_text(json.dumps({"model_type": "\x1b[31mred"}))
    program = "import sys; from pathlib import Path; from batchllm.tokenizer import Tokenizer; "
    program += f"Tokenizer(Path({str(directory)!r})).encode(['a'])"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stderr
    assert "\x1b" not in said
    assert "model of type `\\x1b[31mred`" in said


class PanicException(BaseException):
    """As pyo3's, which is no Exception."""


class FailingBackend:
    """A tokenizer's, which fails on texts with "bad" in them."""

    def __init__(self, backend, error):
        self.backend, self.error = backend, error

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def encode_batch_fast(self, texts, **options):
        if any("bad" in text for text in texts):
            raise self.error("index out of bounds\x1b")
        return self.backend.encode_batch_fast(texts, **options)


@pytest.mark.parametrize("error", [PanicException, OverflowError, ValueError])
def test_whatever_the_tokenizer_raises_is_the_texts_error(directory, monkeypatch, error):
    tokenizer = Tokenizer(directory)
    failing = FailingBackend(tokenizer.backend(), error)
    monkeypatch.setattr(tokenizer, "backend", lambda: failing)
    with pytest.raises(ValueError, match=r"^the tokenizer fails on the text: .*index out of bounds\\x1b$"):
        tokenizer.encode(["bad"])
    with pytest.raises(ValueError, match=r"^the tokenizer fails on the text: "):
        tokenizer.encode_chat([{"role": "user", "content": "bad"}])


def test_a_text_that_cannot_be_encoded_is_refused_by_its_index(tiny_dir, monkeypatch):
    llm = LLM(tiny_dir, dtype="float32")
    backend = llm.get_tokenizer().backend_tokenizer
    monkeypatch.setattr(Tokenizer, "backend", lambda self: FailingBackend(backend, PanicException))
    with pytest.raises(ValueError, match=r"^prompt 2: the tokenizer fails on the text: PanicException: index out"):
        llm.generate(["good", [5], "bad", "good"], use_tqdm=False)


def test_an_interruption_is_no_error_of_a_text(directory, monkeypatch):
    tokenizer = Tokenizer(directory)
    interrupted = FailingBackend(tokenizer.backend(), KeyboardInterrupt)
    monkeypatch.setattr(tokenizer, "backend", lambda: interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode(["bad"])


def test_what_a_file_says_of_cutting_and_padding_is_no_prompts(directory):
    """transformers leaves both out, too, and the tokens are its tokens."""
    path = directory / "tokenizer.json"
    file = json.loads(path.read_text())
    file["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    file["padding"] = {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None} | {
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    path.write_text(json.dumps(file))
    tokenizer = Tokenizer(directory)
    texts = ["a", "a longer text <bos>", ""]
    assert tokenizer.encode(texts) == [tokenizer.hugging_face()(text)["input_ids"] for text in texts]
    assert len(tokenizer.encode(["a longer text"])[0]) > 3
