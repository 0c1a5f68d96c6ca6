"""A model's reasoning is separated from its answer."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from batchllm import LLM, LogitsRule, SamplingParams
from batchllm.reasoning import THINK_TAGS, split_reasoning
from tests.engine import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

TEMPLATE = (
    "{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}<end>{% endfor %}<bos>assistant: "
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% elif opens is defined %}<think>\n{% endif %}"
)
USER = [{"role": "user", "content": "Why?"}]


@pytest.mark.parametrize(
    ("text", "is_open", "expected"),
    [
        ("Because.", False, (None, "Because.")),
        ("", False, (None, "")),
        ("<think>Hm.</think>\n\nBecause.", False, ("Hm.", "\n\nBecause.")),
        ("\n<think>Hm.</think>Because.", False, ("Hm.", "Because.")),
        ("<think></think>Because.", False, ("", "Because.")),
        ("<think>Hm. And", False, ("Hm. And", None)),
        ("<think>Hm.</think>", False, ("Hm.", None)),
        ("<think>A</think>B</think>C", False, ("A", "B</think>C")),
        ("Because </think> ends it.", False, (None, "Because </think> ends it.")),
        ("Hm.</think>Because.", True, ("Hm.", "Because.")),
        ("Hm.", True, ("Hm.", None)),
        ("<think>Hm.</think>Because.", True, ("Hm.", "Because.")),
    ],
)
def test_reasoning_is_what_stands_between_the_tags(text, is_open, expected):
    assert split_reasoning(text, THINK_TAGS, is_open=is_open) == expected


class Says(LogitsRule):
    """Every request draws the bytes of this text."""

    needs_tokens_before_draw = False
    tokens: list[int]

    def concerns(self, rows):
        return np.ones(len(rows), bool)

    def before_draw(self, logits, rows):
        logits.fill_(-torch.inf)
        for row, place in enumerate(rows.num_output_tokens.tolist()):
            logits[row, self.tokens[place]] = 0


def make(tiny_dir: Path, directory: Path, text: str, template: str = TEMPLATE, **options) -> tuple[LLM, SamplingParams]:
    shutil.copytree(tiny_dir, directory)
    (directory / "chat_template.jinja").write_text(template)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    says = Says()
    llm = LLM(directory, dtype="float32", rules=[says], **options)
    says.tokens = tiny.encode(llm, text)
    return llm, SamplingParams(max_tokens=len(says.tokens), ignore_eos=True, n=2)


@pytest.mark.parametrize(
    ("text", "variables", "expected"),
    [
        ("<think>Hm.</think>Because.", {}, ("Hm.", "Because.")),
        ("Hm.</think>Because.", {"opens": True}, ("Hm.", "Because.")),
        ("Hm.", {"opens": True}, ("Hm.", None)),
        ("Because.", {"enable_thinking": False}, (None, "Because.")),
        ("Because.", {}, (None, "Because.")),
    ],
)
def test_what_a_template_began_goes_on_in_the_text(tiny_dir, tmp_path, text, variables, expected):
    llm, params = make(tiny_dir, tmp_path / "model", text)
    (output,) = llm.chat(USER, params, use_tqdm=False, **variables)
    for completion in output.outputs:
        assert completion.text == text
        assert (completion.reasoning_content, completion.content) == expected


def test_tags_are_the_models_those_that_are_given_or_none(tiny_dir, tmp_path):
    text = "<think>[x]A[/x]</think>B"
    plain = tiny.CHAT_TEMPLATE
    cases = [
        (TEMPLATE, {}, ("[x]A[/x]", "B")),
        (TEMPLATE, {"reasoning_tags": None}, (None, text)),
        (TEMPLATE, {"reasoning_tags": ("<think>[x]", "[/x]")}, ("A", "</think>B")),
        (plain, {}, (None, text)),
        (plain, {"reasoning_tags": ["<think>", "</think>"]}, ("[x]A[/x]", "B")),
    ]
    for number, (template, options, expected) in enumerate(cases):
        llm, params = make(tiny_dir, tmp_path / str(number), text, template, **options)
        (output,) = llm.generate([[5]], params, use_tqdm=False)
        assert (output.outputs[0].reasoning_content, output.outputs[0].content) == expected


@pytest.mark.parametrize("tags", ["think", ("<think>",), ("<think>", ""), 5])
def test_tags_that_are_no_pair_are_refused(tiny_dir, tags):
    with pytest.raises(ValueError, match=r"^reasoning_tags: expected 'auto', None or two non-empty strings, got "):
        LLM(tiny_dir, reasoning_tags=tags)


def test_a_conversation_may_go_on_with_the_assistants_words(tiny_llm):
    messages = [*USER, {"role": "assistant", "content": "Because it"}]
    ids = tiny_llm.apply_chat_template(messages, continue_final_message=True)
    assert tiny_llm.get_tokenizer().decode(ids) == "<bos>user: Why?<end><bos>assistant: Because it"
