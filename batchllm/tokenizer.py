"""The model's tokenizer, one for encoding and decoding, and its chat template."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import tokenizers

from batchllm.chat_template import ChatTemplateRunner, MessagesRefused, plain_message
from batchllm.models.config import check_regular, read_json
from batchllm.models.gguf_file import is_gguf
from batchllm.models.gguf_tokenizer import has_tokenizer, load_gguf_tokenizer
from batchllm.reasoning import THINK_TAGS, ReasoningTags
from batchllm.sampling.growing_text import Decode, decoder
from batchllm.sampling_params import SamplingParams
from batchllm.text import as_value_error, printable

Message = dict[str, Any]
TOKENIZER_FILE, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
OTHER_FILES = ("chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "tokenizer.model")
# Texts that reveal how spaces, bytes and special tokens are handled.
PROBES = ("Hello world", "  two  spaces\n\ttabs, and one at the end ", "naïve café, 東京 🙂 \u0301", "1234 5,678.9")
# Widely sent; if a template never mentions it, there is nothing to switch.
HARMLESS_VARIABLES = frozenset({"enable_thinking"})
# Options, and variables that the template gets in other ways.
NOT_VARIABLES = frozenset(
    {
        *("messages", "conversations", "chat_template", "tools", "documents", "add_generation_prompt"),
        *("continue_final_message", "return_assistant_tokens_mask"),
    }
)


class Tokenizer:
    """Encodes, renders chats and decodes, and records the seconds of loading and encoding. Loaded on first use.

    A tokenizer.json is used as it is, as its publisher used it: classes of transformers that rebuild a tokenizer from
    its parts read some files differently. No Python in the model directory is run.

    directory: of a model, or its GGUF file.
    max_tokens: of the longest usable prompt. A text that is certainly longer is refused before it is encoded; None
        encodes every text.
    allow_special_tokens: whether text in messages other than the assistant's can be a special token. Otherwise it is
        plain text.
    reasoning_tags: as in EngineOptions.
    """

    def __init__(
        self,
        directory: Path,
        max_tokens: int | None = None,
        *,
        allow_special_tokens: bool = False,
        reasoning_tags: Any = "auto",
    ) -> None:
        self.directory = directory
        self.max_tokens = max_tokens
        self.allow_special_tokens = allow_special_tokens
        self._reasoning_tags = reasoning_tags
        self.exists = has_tokenizer(directory) if is_gguf(directory) else any(directory.glob("tokenizer*"))
        self.load_s = 0.0
        self.encode_s = 0.0
        self._hugging_face: Any = None
        self._longest_token = 0
        self._file_is_taken_as_it_is = False
        self._decoders: dict[bool, Decode] = {}  # by skip_special_tokens
        self._token_texts: dict[int, str | None] = {}
        self.templates = ChatTemplateRunner()

    @classmethod
    def of(cls, hugging_face: Any, max_tokens: int | None = None, **options: Any) -> Tokenizer:
        """Wraps a loaded transformers tokenizer. Raises ValueError if it cannot be relied on."""
        tokenizer = cls(Path(hugging_face.name_or_path), max_tokens, **options)
        tokenizer._hugging_face, tokenizer.exists = hugging_face, True
        tokenizer.backend()
        return tokenizer

    def hugging_face(self) -> Any:
        """The transformers tokenizer. Raises ValueError if it cannot be loaded, or cannot be relied on."""
        if self._hugging_face is None:
            start = time.perf_counter()
            self._hugging_face = self._load()
            self.load_s += time.perf_counter() - start
        return self._hugging_face

    def backend(self) -> tokenizers.Tokenizer:
        """The tokenizer that transformers wraps. Raises ValueError if there is none or it cannot be loaded."""
        backend: tokenizers.Tokenizer | None = getattr(self.hugging_face(), "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"{self.directory}: expected a fast tokenizer ({TOKENIZER_FILE})")
        return backend

    def check_chat_template(self) -> None:
        """Raises ValueError if there is a template that can render no conversation at all, which is the model's fault
        and not a message's."""
        if not self.exists or self.hugging_face().chat_template is None:
            return
        template = self._chat_template(None, None)
        try:
            self.templates.render(conversations=[], chat_template=template)
            with suppress(MessagesRefused):  # a template may require other messages
                self.encode_chat([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
        except ValueError as error:
            raise ValueError(f"{self.directory}: {error}") from None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokenizer's own end of sequence, if there is a tokenizer and it names one."""
        if not self.exists:
            return ()
        self.backend()
        token = self.hugging_face().eos_token_id
        return () if token is None else (int(token),)

    @cached_property
    def reasoning_tags(self) -> ReasoningTags | None:
        """The tags that separate reasoning from an answer, if there is a tokenizer that has any."""
        if not self.exists or self._reasoning_tags is None:
            return None
        if self._reasoning_tags != "auto":
            return ReasoningTags(*self._reasoning_tags)
        loaded = self.hugging_face()
        known = {token.content for token in loaded.added_tokens_decoder.values()}
        template = str(loaded.chat_template)  # or the templates, by name
        return THINK_TAGS if all(tag in known or tag in template for tag in THINK_TAGS) else None

    def check_length(self, text: str) -> None:
        """Raises ValueError for a text longer than max_tokens of the longest token: encoding takes hundreds of bytes
        per character."""
        if self.max_tokens is None or len(text) <= self.max_tokens:
            return
        self._longest_token = self._longest_token or max(map(len, self.backend().get_vocab()))
        if len(text) > self.max_tokens * self._longest_token:
            raise ValueError(
                f"the prompt has {len(text):,} characters, and the model takes {self.max_tokens:,} tokens of at most "
                f"{self._longest_token}"
            )

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each text. Raises ValueError like `check_length`, or for a text that the tokenizer cannot
        encode."""
        for text in texts:
            self.check_length(text)
        tokenizer = self.hugging_face()
        start = time.perf_counter()
        with as_value_error("the tokenizer fails on the text"):
            if self._file_is_taken_as_it_is:
                token_ids = self._encode_batch(list(texts), add_special_tokens)
            else:
                token_ids = tokenizer(
                    list(texts),
                    add_special_tokens=add_special_tokens,
                    return_attention_mask=False,
                    return_token_type_ids=False,
                )["input_ids"]
        self.encode_s += time.perf_counter() - start
        return token_ids

    def _encode_batch(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        """Encodes like transformers, but without its objects and offsets for each text."""
        backend = self.backend()
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.hugging_face().split_special_tokens
        return [text.ids for text in backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)]

    def encode_chat(self, messages: Sequence[Message], **options: Any) -> list[int]:
        """`encode_chats` of one conversation."""
        [token_ids] = self.encode_chats([messages], **options)
        return token_ids

    def encode_chats(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        chat_template: str | None = None,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> list[list[int]]:
        """Conversations in the model's chat template. Options are those of transformers' `apply_chat_template`;
        variables of the template may be in chat_template_kwargs or beside them. All conversations together may take the
        time and memory of one.

        Raises ValueError if there is no template, it has no such variable, it fails, or a message is malformed.
        """
        tokenizer = self.hugging_face()
        from transformers.utils.chat_template_utils import get_json_schema

        template = self._chat_template(chat_template, tools)
        if not isinstance(chat_template_kwargs, (Mapping, type(None))):
            raise ValueError(f"chat_template_kwargs: expected a dict, got {chat_template_kwargs!r:.80}")
        variables |= chat_template_kwargs or {}
        for name in variables.keys() - HARMLESS_VARIABLES:
            if name in NOT_VARIABLES or not re.search(rf"\b{re.escape(name)}\b", template):
                raise ValueError(f"chat_template_kwargs: the chat template has no {printable(name)}")
        for messages in conversations:
            if not isinstance(messages, Sequence) or not messages:
                raise ValueError(f"messages: expected a list of messages, got {messages!r:.80}")
        with as_value_error("tools"):
            tools = tools and [tool if isinstance(tool, Mapping) else get_json_schema(tool) for tool in tools]
        inputs = {
            "conversations": [
                [plain_message(place, message) for place, message in enumerate(messages)] for messages in conversations
            ],
            "tools": tools,
            "documents": documents and list(documents),
            **variables,
        }
        try:
            marked = inputs if self.allow_special_tokens else _mark(inputs, _control_tokens(tokenizer, template))
            texts = self.templates.render(
                **tokenizer.special_tokens_map | marked,
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
            for text in texts:
                text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"not valid Unicode: {error}") from None
        except (TypeError, RecursionError) as error:
            raise ValueError(f"messages: expected what JSON can hold: {error}") from None
        if marked == inputs:
            return self.encode(texts, add_special_tokens=False)
        if len(texts) > 1:  # each as if alone
            options = {"chat_template": template, "tools": tools, "documents": documents, **variables}
            options |= {"add_generation_prompt": add_generation_prompt}
            options |= {"continue_final_message": continue_final_message}
            return [self.encode_chat(messages, **options) for messages in conversations]
        self.check_length(texts[0])
        with as_value_error("the tokenizer fails on the text"):
            return [_encode_marked(tokenizer, texts[0])]

    def decode(self, token_ids: list[int], params: SamplingParams) -> str:
        """Text of the tokens; empty if the model directory has no tokenizer. Raises ValueError if decoding fails."""
        if not self.exists:
            return ""
        if (decode := self._decoders.get(params.skip_special_tokens)) is None:
            decode = self._decoders[params.skip_special_tokens] = decoder(self.backend(), params)
        return decode(token_ids)

    def token_text(self, token_id: int) -> str | None:
        """The text that a token adds, special or not, measured as what a second copy adds to a first, because a
        tokenizer may drop a leading space. None if it cannot be decoded."""
        if token_id not in self._token_texts:
            decode = decoder(self.backend(), SamplingParams(skip_special_tokens=False))
            try:
                one, two = decode([token_id]), decode([token_id, token_id])
                self._token_texts[token_id] = two[len(one) :] if two.startswith(one) else one
            except ValueError:
                self._token_texts[token_id] = None
        return self._token_texts[token_id]

    def _chat_template(self, given: str | None, tools: Sequence[Any] | None) -> str:
        tokenizer = self.hugging_face()
        if given is None and tokenizer.chat_template is None:
            raise ValueError(f"{self.directory}: the tokenizer has no chat template; use prompts instead of messages")
        with as_value_error(f"{self.directory}: chat_template"):
            template: str = tokenizer.get_chat_template(given, tools)
        return template

    def _check_files(self) -> None:
        """Refuses files that would make a loader wait, ask, or fail later."""
        path = self.directory / TOKENIZER_CONFIG
        for name in (TOKENIZER_FILE, TOKENIZER_CONFIG, *OTHER_FILES):
            check_regular(self.directory / name)
        config = read_json(path) if path.exists() else {}
        auto_map = config.get("auto_map")
        if "AutoTokenizer" in auto_map if isinstance(auto_map, dict) else auto_map:
            raise ValueError(f"{path}: auto_map: Python of a model directory is never run, got {auto_map!r:.80}")
        length = config.get("model_max_length", 1)
        if not isinstance(length, (int, float)) or isinstance(length, bool):
            raise ValueError(f"{path}: model_max_length: expected a number, got {length!r:.80}")
        if not isinstance(config.get("chat_template", ""), (str, list, type(None))):
            raise ValueError(f"{path}: chat_template: expected text, got {config['chat_template']!r:.80}")

    def _load(self) -> Any:
        import transformers
        from transformers.utils import chat_template_utils

        if not hasattr(chat_template_utils, "mark_control_tokens"):
            raise ValueError(f"transformers {transformers.__version__} is too old: 5.20.2 or later is needed")
        if is_gguf(self.directory):
            with as_value_error(f"{self.directory}: cannot load a tokenizer"):
                return load_gguf_tokenizer(self.directory)
        self._check_files()
        path = self.directory / TOKENIZER_FILE
        plain = None
        if path.exists():
            with as_value_error(f"{path}: cannot load a tokenizer"):
                plain = tokenizers.Tokenizer.from_file(str(path))
        loader = transformers.AutoTokenizer if plain is None else transformers.PreTrainedTokenizerFast
        with _printable_log("transformers"), as_value_error(f"{self.directory}: cannot load a tokenizer"):
            loaded = loader.from_pretrained(self.directory, trust_remote_code=False, local_files_only=True)
            if plain is not None:
                _check_same(plain, loaded)
                self._file_is_taken_as_it_is = True
        return loaded


@contextmanager
def _printable_log(name: str) -> Iterator[None]:
    """Makes a logger's output, which may quote the model's files, printable meanwhile."""

    def rewrite(record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), ()
        return True

    handlers = list(logging.getLogger(name).handlers)
    for handler in handlers:
        handler.addFilter(rewrite)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(rewrite)


def _check_same(plain: tokenizers.Tokenizer, loaded: Any) -> None:
    """Raises ValueError if transformers reads tokenizer.json differently from what it says."""
    plain.no_truncation()
    plain.no_padding()
    for text in PROBES:
        expected = plain.encode(text, add_special_tokens=False).ids
        got = loaded(text, add_special_tokens=False)["input_ids"]
        as_expected, as_got = plain.decode(expected), loaded.backend_tokenizer.decode(got)
        if got != expected or as_got != as_expected:
            from transformers import __version__ as version

            raise ValueError(
                f"{TOKENIZER_FILE} has {expected} for {text!r}, and {as_expected!r} for these; transformers {version} "
                f"reads it as {got} and {as_got!r}"
            )


def _control_tokens(tokenizer: Any, template: str) -> re.Pattern[str]:
    """A pattern for the special tokens and the other added tokens that the template writes, longest first."""
    contents = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content in template and not token.content.isspace())
    ]
    return re.compile("|".join(map(re.escape, sorted(contents, key=len, reverse=True))) or "(?!)")


def _mark(inputs: dict[str, Any], control_tokens: re.Pattern[str]) -> dict[str, Any]:
    """The same messages, with text that looks like a control token marked as text, except in the assistant's."""
    from transformers.utils.chat_template_utils import mark_control_tokens

    marked: dict[str, Any] = mark_control_tokens(inputs, control_tokens)
    conversations = [
        [ours if ours["role"] == "assistant" else theirs for ours, theirs in zip(before, after, strict=True)]
        for before, after in zip(inputs["conversations"], marked["conversations"], strict=True)
    ]
    return marked | {"conversations": conversations}


def _encode_marked(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a chat that was rendered from marked inputs: what is marked is text."""
    from transformers.utils.chat_template_utils import _get_control_token_patterns, encode_marked_chat

    options: dict[str, Any] = {}
    if "markers_re" in signature(encode_marked_chat).parameters:  # transformers 5.20, the last for Python 3.10
        _, options["markers_re"] = _get_control_token_patterns(tuple(tokenizer.added_tokens_encoder))
    token_ids: list[int] = encode_marked_chat(tokenizer, text, **options)
    return token_ids
