"""The model's Hugging Face tokenizer, loaded on first use: jobs of token ids only decode, without transformers."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import tokenizers

from batchllm.sampling_params import SamplingParams

Message = dict[str, Any]
TOKENIZER_FILE = "tokenizer.json"


class Tokenizer:
    """Encodes, renders chats and decodes; keeps the seconds that loading and encoding took.

    max_tokens: of the longest prompt that is of use. A text that cannot be one by its length alone is refused before it
        is encoded; None encodes every text.
    """

    def __init__(self, directory: Path, max_tokens: int | None = None) -> None:
        self.directory = directory
        self.max_tokens = max_tokens
        self.exists = any(directory.glob("tokenizer*"))
        self.load_s = 0.0
        self.encode_s = 0.0
        self._hugging_face: Any = None
        self._backend: tokenizers.Tokenizer | None = None
        self._longest_token = 0

    def hugging_face(self) -> Any:
        """The transformers tokenizer. Raises ValueError if it cannot be loaded."""
        if self._hugging_face is None:
            start = time.perf_counter()
            from transformers import AutoTokenizer

            try:
                self._hugging_face = AutoTokenizer.from_pretrained(self.directory)
            except Exception as error:
                raise ValueError(f"{self.directory}: cannot load a tokenizer: {error}") from error
            self.load_s += time.perf_counter() - start
        return self._hugging_face

    def backend(self) -> tokenizers.Tokenizer:
        """What transformers wraps, without the second and a half that importing it takes; the wrapped one where the
        directory has no tokenizer.json. Raises ValueError if there is none, or it cannot be loaded."""
        if self._backend is None:
            path = self.directory / TOKENIZER_FILE
            self._backend = self._load(path) if path.exists() else self._wrapped()
        return self._backend

    def _load(self, path: Path) -> tokenizers.Tokenizer:
        start = time.perf_counter()
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
            tokenizer.add_special_tokens(self._special_tokens())
        except Exception as error:
            raise ValueError(f"{path}: cannot load a tokenizer: {error}") from error
        self.load_s += time.perf_counter() - start
        return tokenizer

    def _wrapped(self) -> tokenizers.Tokenizer:
        backend = getattr(self.hugging_face(), "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"{self.directory}: expected a fast tokenizer ({TOKENIZER_FILE})")
        return backend

    def _special_tokens(self) -> list[tokenizers.AddedToken]:
        """Those that tokenizer_config.json names, which tokenizer.json may know as plain tokens."""
        path = self.directory / "tokenizer_config.json"
        config = json.loads(path.read_text()) if path.exists() else {}
        tokens = config.get("added_tokens_decoder", {}).values()
        return [tokenizers.AddedToken(token["content"], special=True) for token in tokens if token.get("special")]

    def check_length(self, text: str) -> None:
        """Raises ValueError for a text that max_tokens of the longest token cannot hold: encoding takes a hundred bytes
        for each of it."""
        if self.max_tokens is None or len(text) <= self.max_tokens:
            return
        self._longest_token = self._longest_token or max(map(len, self.backend().get_vocab()))
        if len(text) > self.max_tokens * self._longest_token:
            raise ValueError(
                f"the prompt has {len(text):,} characters, and the model takes {self.max_tokens:,} tokens of at most "
                f"{self._longest_token}"
            )

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each text. Raises ValueError as `check_length`."""
        for text in texts:
            self.check_length(text)
        tokenizer = self.hugging_face()
        start = time.perf_counter()
        token_ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]
        self.encode_s += time.perf_counter() - start
        return token_ids

    def encode_chat(self, messages: Sequence[Message], **options: Any) -> list[int]:
        """A conversation in the model's chat template. Raises ValueError where there is none, or a message is amiss."""
        tokenizer = self.hugging_face()
        if tokenizer.chat_template is None and "chat_template" not in options:
            raise ValueError(f"{self.directory}: the tokenizer has no chat template; use prompts instead of messages")
        plain = [_plain_message(place, message) for place, message in enumerate(messages)]
        try:
            text = tokenizer.apply_chat_template(plain, tokenize=False, **options)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refuses the messages: {error}") from None
        return self.encode([text], add_special_tokens=False)[0]

    def decode(self, token_ids: list[int], params: SamplingParams) -> str:
        """Text of the tokens; empty where the model directory has no tokenizer."""
        if not self.exists:
            return ""
        text: str = self.backend().decode(token_ids, skip_special_tokens=params.skip_special_tokens)
        return text


def _plain_message(place: int, message: Message) -> Message:
    """The message with its content as one text: OpenAI's list of text parts is joined by newlines."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f"messages[{place}]: expected a dict with a role and content, got {message!r:.80}")
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "\n".join(str(part.get("text")) for part in content)
    if not isinstance(content, str):
        raise ValueError(f"messages[{place}].content: expected text or text parts, got {message.get('content')!r:.80}")
    return {**message, "content": content}
