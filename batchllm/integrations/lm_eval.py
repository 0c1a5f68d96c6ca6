"""lm-evaluation-harness on our engine: each of its calls is one job, and what its requests share is computed once.

    python -m batchllm.integrations.lm_eval run --model batchllm --model_args pretrained=MODEL --tasks arc_easy

is the harness's own command line with one more model. From Python, importing this module registers it:

    lm_eval.simple_evaluate("batchllm", model_args={"pretrained": "MODEL"}, tasks=["arc_easy"])
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from batchllm.integrations.requirement import require
from batchllm.llm import LLM
from batchllm.models.config import OTHER_SETTINGS, other_settings
from batchllm.requests import Prompt
from batchllm.sampling_params import SamplingParams

require("lm_eval", ">=0.4.13,<0.4.14", install="batchllm-ext[eval]")

# lm_eval.models registers the other models, but only while none is registered, so it comes before ours.
from jinja2 import TemplateError  # noqa: E402
from lm_eval.__main__ import cli_evaluate  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import TemplateLM  # noqa: E402
from lm_eval.api.registry import register_model  # noqa: E402
from lm_eval.models.utils import (  # noqa: E402
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # noqa: E402

# A task's generation_kwargs, beside `until`, `do_sample` and the number of tokens.
SAMPLING_FIELDS = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("seed", "min_tokens"),
)
Tokens = list[int]


@register_model("batchllm")
class BatchLLM(TemplateLM):
    """Its scores and texts are those of the harness's `hf` model on the same weights, dtype and max_length."""

    def __init__(
        self,
        pretrained: str | Path | LLM,
        *,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        enable_thinking: bool | None = None,
        chat_template_args: dict[str, Any] | None = None,
        think_end_token: str | None = None,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        """pretrained: as LLM takes it, or an LLM (that of batchllm.integrations.transformers.lend, for one).
        max_length: tokens of the longest context; by default the model's.
        max_gen_toks: for tasks that set no limit.
        add_bos_token, prefix_token_id, enable_thinking, chat_template_args, think_end_token: as `hf` has them.
        device: "cpu", or the harness's default ("cuda:0"), which means LLM's "auto".
        batch_size, max_batch_size: without effect; memory bounds a batch, not a number of requests.
        options: of batchllm.options.EngineOptions: dtype, quantize, kv_cache_tokens, max_batch_tokens, ...

        Raises ValueError and FileNotFoundError like LLM, and ValueError for options beside an LLM.
        """
        super().__init__()
        if isinstance(pretrained, LLM):
            if options:
                raise ValueError(f"{next(iter(options))}: pretrained is an LLM, which already has its options")
            self.llm = pretrained
        else:
            if device is not None:
                options["device"] = "cpu" if device == "cpu" else "auto"
            self.llm = LLM(pretrained, **options)
        if not 1 <= (max_length or 1) <= self.llm.max_model_len:
            raise ValueError(f"max_length: expected 1 to {self.llm.max_model_len}, got {max_length}")
        self.tokenizer = self.llm.get_tokenizer()
        self.max_length, self.max_gen_toks = max_length or self.llm.max_model_len, max_gen_toks
        self.add_bos_token, self.think_end_token = add_bos_token, think_end_token
        self._prefix_token_id = prefix_token_id
        self._template_args = dict(chat_template_args or {})
        if enable_thinking is not None:
            self._template_args["enable_thinking"] = enable_thinking
        self._encoded: dict[str, Tokens] = {}  # of the texts of a call

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        known = (self._prefix_token_id, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return next(int(token) for token in known if token is not None)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> Tokens:
        if add_special_tokens is None and string in self._encoded:
            return self._encoded[string]
        return self._encode([string], add_special_tokens)[0]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Renders the chat, without its system message if the template accepts none."""

        def rendered(history: list[dict[str, str]]) -> str:
            return self.tokenizer.apply_chat_template(
                history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self._template_args,
            )

        try:
            return rendered(chat_history)
        except TemplateError:
            return rendered([message for message in chat_history if message["role"] != "system"])

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The scores of each (context, continuation)."""
        pairs = [request.args for request in requests]
        self._encode_ahead(text for before, after in pairs for text in (before.rstrip(), before + after))
        try:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        finally:
            self._encoded = {}

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The score of each text, in windows of max_length tokens, cut like the harness does."""
        texts = [request.args[0] for request in requests]
        windows: list[tuple[tuple[str, str] | None, Tokens, Tokens]] = []
        ends = []
        for tokens in self._encode(texts):
            pairs = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            windows += [(None, *make_disjoint_window(pair)) for pair in pairs]
            ends.append(len(windows))
        scores = [logprob for logprob, _ in self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)]
        sums = [sum(scores[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]
        for text, total in zip(texts, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return sums

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str] | None, Tokens, Tokens]], disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
        """The scores of each (key of the cache, context, continuation). A context that is too long loses its first
        tokens. Raises ValueError for a continuation that is too long by itself."""
        if not requests:
            return []
        longest = max(len(after) for _, _, after in requests)
        if longest > self.max_length:
            raise ValueError(f"a continuation has {longest} tokens, and the model takes {self.max_length}")
        contexts: list[Prompt] = [before[-(self.max_length + 1 - len(after)) :] for _, before, after in requests]
        scored = self.llm.score(contexts, [[after] for _, _, after in requests], use_tqdm=not disable_tqdm)
        answers = [(score.logprob, score.is_greedy) for (score,) in scored]
        for (key, _, _), answer in zip(requests, answers, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text of each (context, generation_kwargs), without the stop string. A context that leaves no room loses
        its first tokens. Raises ValueError for an unknown setting."""
        eos = self.tokenizer.decode([self.eot_token_id])
        prompts: list[Prompt] = []
        params: list[SamplingParams] = []
        untils: list[list[str]] = []
        for tokens, request in zip(self._encode([request.args[0] for request in requests]), requests, strict=True):
            settings: dict[str, Any] = normalize_gen_kwargs(request.args[1], self.max_gen_toks)
            untils.append(handle_stop_sequences(settings.pop("until"), eos))
            params.append(self._sampling_params(settings, untils[-1]))
            prompts.append(tokens[-(self.max_length - (params[-1].max_tokens or 0)) :])
        outputs = self.llm.generate(prompts, params, use_tqdm=not disable_tqdm)
        texts = [
            postprocess_generated_text(output.outputs[0].text, until, self.think_end_token)
            for output, until in zip(outputs, untils, strict=True)
        ]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _sampling_params(self, settings: dict[str, Any], until: list[str]) -> SamplingParams:
        """Settings that a task leaves open come from the model's generation_config.json."""
        max_tokens, do_sample = settings.pop("max_gen_toks"), settings.pop("do_sample")
        if max_tokens >= self.max_length:
            raise ValueError(f"max_gen_toks: {max_tokens}, and the model takes {self.max_length} tokens")
        given = {name: value for name, value in settings.items() if name in SAMPLING_FIELDS}
        unknown = settings.keys() - given.keys() - OTHER_SETTINGS.keys() | other_settings(settings).keys()
        if unknown:
            raise ValueError(f"generation_kwargs: no setting of BatchLLM: {', '.join(sorted(unknown))}")
        if not do_sample:
            given["temperature"] = 0.0
        stop = [text for text in until if text]
        return SamplingParams(**self.llm.sampling_defaults | given | {"max_tokens": max_tokens, "stop": stop})

    def _encode_ahead(self, texts: Iterable[str]) -> None:
        """Encodes for `tok_encode`, which the harness calls with one text at a time."""
        unique = list(dict.fromkeys(texts))
        self._encoded = dict(zip(unique, self._encode(unique), strict=True))

    def _encode(self, texts: list[str], add_special_tokens: bool | None = None) -> list[Tokens]:
        """With the special tokens that the tokenizer, or add_bos_token, puts before a text that has none."""
        prefix = self.tokenizer.decode([self.prefix_token_id])
        tokens: dict[int, Tokens] = {}
        for begins_with_one in (False, True):
            places = [i for i, text in enumerate(texts) if has_bos_prefix(text, prefix) == begins_with_one]
            adds = self.add_bos_token if add_special_tokens is None else add_special_tokens
            if begins_with_one and add_special_tokens is None:
                adds = False
            option = {} if adds is None else {"add_special_tokens": adds}
            if places:
                encoded = self.tokenizer([texts[i] for i in places], return_attention_mask=False, **option)
                tokens |= zip(places, encoded["input_ids"], strict=True)
        return [tokens[place] for place in range(len(texts))]


if __name__ == "__main__":
    cli_evaluate()
