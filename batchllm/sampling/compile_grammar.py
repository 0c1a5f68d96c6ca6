"""Grammars of structured outputs, compiled for a vocabulary by xgrammar, each once.

A schema or an expression is an untrusted program to xgrammar, and even a short one may take minutes. So it is compiled
in a separate process with limits, and kept in a cache on disk, where a resumed job finds it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from batchllm import __version__
from batchllm.bounded_process import BoundedProcess, answer_lines
from batchllm.sampling_params import StructuredOutputsParams
from batchllm.text import printable

TIME_LIMIT_S = 5.0  # CPU time for one grammar
MEMORY_LIMIT_BYTES = 2 << 30
MAX_SOURCE_CHARS = 1 << 20
MAX_WHITESPACE = 2  # consecutive characters in JSON: some models would write them forever
MAX_CACHED_FILES = 256  # of half a megabyte or less
INSTALL = "pip install --no-deps xgrammar apache-tvm-ffi"


def require_xgrammar() -> Any:
    """The module. Raises ValueError that says how to install it."""
    try:
        import xgrammar
    except ImportError as error:
        raise ValueError(f"structured outputs need xgrammar ({error}); {INSTALL}") from None
    return xgrammar


class GrammarError(ValueError):
    """What is wrong with a request's grammar."""


class GrammarCompiler:
    """Compiles for one tokenizer; nothing is loaded before the first grammar."""

    def __init__(self, hugging_face: Callable[[], Any], vocab_size: int, cache: Path | None = None) -> None:
        """hugging_face: gives a fast tokenizer of transformers. cache: a directory; None is the user's."""
        self._hugging_face, self.vocab_size = hugging_face, vocab_size
        self._cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "batchllm/grammars"
        self._compiled: dict[tuple[str, str], Any] = {}

    def compile(self, grammar: StructuredOutputsParams) -> Any:
        """xgrammar's CompiledGrammar. Raises GrammarError that names the field; ValueError without xgrammar."""
        require_xgrammar()
        kind, text = grammar.source
        if (kind, text) not in self._compiled:
            try:
                if len(text) > MAX_SOURCE_CHARS:
                    raise ValueError(f"expected at most {MAX_SOURCE_CHARS:,} characters, got {len(text):,}")
                self._compiled[kind, text] = self._load(kind, text)
            except ValueError as error:
                raise GrammarError(f"structured_outputs.{kind}: {error}") from None
        return self._compiled[kind, text]

    def _load(self, kind: str, text: str) -> Any:
        versions = (__version__, version("xgrammar"), str(MAX_WHITESPACE))
        key = "\n".join((*versions, self._vocabulary.serialize_json(), kind, text))
        file = self._cache / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
        with suppress(OSError, RuntimeError):  # missing, or from another xgrammar
            return self._deserialize(file.read_text())
        serialized = self._compile(kind, text)
        with suppress(OSError):
            self._keep(file, serialized)
        return self._deserialize(serialized)

    def _compile(self, kind: str, text: str) -> str:
        answer = self._process.ask({"kind": kind, "text": text})
        if "refused" in answer:
            raise ValueError(printable(answer["refused"]))
        return str(answer["compiled"])

    def _deserialize(self, serialized: str) -> Any:
        return require_xgrammar().CompiledGrammar.deserialize_json(serialized, self._vocabulary)

    def _keep(self, file: Path, serialized: str) -> None:
        """Whole or not at all; the oldest leave."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as new:
            new.write(serialized)
        os.replace(new.name, file)
        files = sorted(file.parent.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in files[:-MAX_CACHED_FILES]:
            old.unlink(missing_ok=True)

    @cached_property
    def _process(self) -> BoundedProcess:
        opening = {"vocabulary": self._vocabulary.serialize_json()}
        return BoundedProcess(f"{__name__}:serve", "compiling it", TIME_LIMIT_S, opening)

    @cached_property
    def _vocabulary(self) -> Any:
        """xgrammar's TokenizerInfo, with special tokens left empty; otherwise they could be drawn inside a JSON
        string."""
        info, tokenizer = require_xgrammar().TokenizerInfo, self._hugging_face()
        known = info.from_huggingface(tokenizer, vocab_size=self.vocab_size)
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        vocab = [""] * self.vocab_size
        for text, token in tokenizer.get_vocab().items():
            if token < self.vocab_size and token not in special:
                vocab[token] = text
        return info.from_vocab_and_metadata(vocab, known.dump_metadata())


def serve() -> None:
    """In the process: the opening brings the vocabulary, every other question a grammar."""
    xgrammar = require_xgrammar()
    compiler: Any = None

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        nonlocal compiler
        if "vocabulary" in question:
            vocabulary = xgrammar.TokenizerInfo.deserialize_json(question["vocabulary"])
            compiler = xgrammar.GrammarCompiler(vocabulary, max_threads=1, cache_enabled=False)
            return {}
        try:
            grammar = _grammar(xgrammar.Grammar, question["kind"], question["text"])
            return {"compiled": compiler.compile_grammar(grammar).serialize_json()}
        except MemoryError:
            return {"refused": f"needs more than {MEMORY_LIMIT_BYTES >> 20} MiB"}
        except (RuntimeError, ValueError) as error:
            # The place in xgrammar's source and the time do not help the author of the grammar.
            return {"refused": re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", str(error)).strip()}

    answer_lines(answer, time_limit_s=TIME_LIMIT_S, memory_limit_bytes=MEMORY_LIMIT_BYTES)


def _grammar(grammars: Any, kind: str, text: str) -> Any:
    if kind in ("json", "json_object"):
        schema = text or '{"type": "object", "additionalProperties": true}'
        rules = str(grammars.from_json_schema(schema, max_whitespace_cnt=MAX_WHITESPACE))
        # Strings of bounded length could hold control characters, which JSON forbids.
        return grammars.from_ebnf(rules.replace(r"[^\"\\\r\n]", r"[^\"\\\0-\x1f]"))
    if kind == "choice":
        literals = [json.dumps(choice, ensure_ascii=False) for choice in json.loads(text)]  # GBNF's escapes are JSON's
        return grammars.from_ebnf(f"root ::= {' | '.join(literals)}")
    return grammars.from_regex(text) if kind == "regex" else grammars.from_ebnf(text)
