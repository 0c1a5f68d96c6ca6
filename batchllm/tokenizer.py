"""The model's Hugging Face tokenizer: loaded on first use, because jobs of token ids may need none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchllm.sampling_params import SamplingParams

Message = dict[str, Any]


class Tokenizer:
    """Encodes, renders chats and decodes; keeps the seconds that loading and encoding took."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.load_s = 0.0
        self.encode_s = 0.0
        self._hugging_face: Any = None

    @property
    def exists(self) -> bool:
        return self._hugging_face is not None or any(self.directory.glob("tokenizer*"))

    def hugging_face(self) -> Any:
        """The transformers tokenizer. Raises ValueError if it cannot be loaded."""
        if self._hugging_face is None:
            start = time.perf_counter()
            from transformers import AutoTokenizer

            try:
                self._hugging_face = AutoTokenizer.from_pretrained(self.directory)
            except Exception as error:
                raise ValueError(f"{self.directory}: cannot load a tokenizer: {error}") from error
            self.load_s = time.perf_counter() - start
        return self._hugging_face

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        tokenizer = self.hugging_face()
        start = time.perf_counter()
        token_ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]
        self.encode_s += time.perf_counter() - start
        return token_ids

    def encode_chat(self, messages: Sequence[Message], **options: Any) -> list[int]:
        """A conversation in the model's chat template. Raises ValueError where there is none."""
        tokenizer = self.hugging_face()
        if tokenizer.chat_template is None and "chat_template" not in options:
            raise ValueError(f"{self.directory}: the tokenizer has no chat template; use prompts instead of messages")
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        return self.encode([text], add_special_tokens=False)[0]

    def decode(self, token_ids: list[int], params: SamplingParams) -> str:
        """Text of the tokens; empty where the model directory has no tokenizer."""
        if not self.exists:
            return ""
        text: str = self.hugging_face().decode(
            token_ids, skip_special_tokens=params.skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text
