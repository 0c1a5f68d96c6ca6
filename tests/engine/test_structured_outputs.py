"""Answers that a grammar bounds: they parse and validate, whatever the model would have said."""

import json
import re
import sys

import numpy as np
import pytest

from batchllm import LLM, SamplingParams, StructuredOutputsParams
from batchllm.sampling import compile_grammar
from tests.engine import tiny

TYPES = [{"type": "integer"}, {"type": "boolean"}, {"enum": ["a", "b"]}, {"type": "string", "maxLength": 3}]
SCHEMA = {
    "type": "object",
    "properties": {f"f{i}": kind for i, kind in enumerate(TYPES)},
    "required": [f"f{i}" for i in range(len(TYPES))],
    "additionalProperties": False,
}
PROMPTS = [[5, 6, 7, 8, 9, 10 + i] for i in range(6)]


@pytest.fixture(scope="module")
def llm(tiny_dir, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return LLM(tiny_dir, dtype="float32", kv_cache_tokens=2048)


def answers(llm, **options):
    params = SamplingParams(max_tokens=200, **{"temperature": 0.0} | options)
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    return [completion for output in outputs for completion in output.outputs]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_validate_against_their_schema(llm, temperature):
    for answer in answers(
        llm, structured_outputs=StructuredOutputsParams(json=SCHEMA), temperature=temperature, n=2, seed=1
    ):
        assert answer.finish_reason == "stop", answer
        value = json.loads(answer.text)
        assert list(value) == list(SCHEMA["properties"])
        assert type(value["f0"]) is int
        assert type(value["f1"]) is bool
        assert value["f2"] in ("a", "b")
        assert len(value["f3"]) <= 3


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ({"regex": "[ab]{2}-[0-9]{3}"}, "[ab]{2}-[0-9]{3}"),
        ({"choice": ["yes", 'no "é"\n', "naïve 🙂"]}, 'yes|no "é"\n|naïve 🙂'),
        ({"grammar": 'root ::= "x" ("," "x"){3}'}, "x,x,x,x"),
    ],
)
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_answers_match_regex_choice_and_grammar(llm, given, pattern, ignore_eos):
    """Without an end of sequence, a grammar that is complete ends the request."""
    for answer in answers(llm, structured_outputs=StructuredOutputsParams(**given), ignore_eos=ignore_eos):
        assert answer.finish_reason == "stop", answer
        assert re.fullmatch(pattern, answer.text)
        assert (tiny.EOS in answer.token_ids) == (not ignore_eos)


def test_any_json_object_may_be_cut_by_max_tokens_only(llm):
    for answer in answers(llm, structured_outputs=StructuredOutputsParams(json_object=True), temperature=1.0):
        assert answer.text.startswith("{")
        if answer.finish_reason == "stop":
            assert isinstance(json.loads(answer.text), dict)


def test_the_log_probability_is_the_models_and_neighbours_without_a_grammar_are_not_touched(llm):
    constrained = StructuredOutputsParams(choice=["zz"])
    free = SamplingParams(max_tokens=8, temperature=0.0)
    bound = SamplingParams(max_tokens=8, temperature=0.0, structured_outputs=constrained)
    alone = llm.generate(PROMPTS, free, use_tqdm=False)
    mixed = llm.generate(PROMPTS, [bound, free, free, bound, free, free], use_tqdm=False)
    for i in (1, 2, 4, 5):
        assert mixed[i].outputs[0].token_ids == alone[i].outputs[0].token_ids
    assert mixed[0].outputs[0].text == "zz"
    given = [{"prompt_token_ids": PROMPTS[0] + mixed[0].outputs[0].token_ids}]
    scored = llm.generate(given, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)[0].prompt_logprobs
    tokens = mixed[0].outputs[0].token_ids
    expected = sum(next(iter(entry.values())).logprob for entry in scored[-len(tokens) :])
    assert mixed[0].outputs[0].cumulative_logprob == pytest.approx(expected, abs=1e-4)


def test_a_special_token_is_no_text_of_a_string(llm):
    strings = StructuredOutputsParams(json={"type": "string"})
    for answer in answers(llm, structured_outputs=strings, temperature=2.0, seed=3):
        special = [token for token in answer.token_ids if token < tiny.NUM_SPECIAL]
        assert special in ([], [tiny.EOS])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"json": {"type": "foo"}}, 'structured_outputs.json: Unsupported type "foo"'),
        ({"json": "{"}, "structured_outputs.json: .*Failed to parse JSON"),
        ({"regex": "(a"}, "structured_outputs.regex: Regex parsing error at position 3: The parenthesis is not closed"),
        ({"grammar": "root ::= foo"}, 'structured_outputs.grammar: .* Rule "foo" is not defined'),
        ({"regex": "a" * (1 << 20) + "b"}, "structured_outputs.regex: expected at most 1,048,576 characters, got 1,04"),
        ({"regex": "|".join("a" * i for i in range(1, 1400))}, "structured_outputs.regex: compiling it did not end"),
    ],
)
def test_what_is_wrong_with_a_grammar_is_its_requests_error_before_anything_runs(llm, given, message, monkeypatch):
    monkeypatch.setattr(compile_grammar, "MAX_SOURCE_CHARS", 1 << 20)
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**given))
    with pytest.raises(ValueError, match=f"^prompt 0: {message}"):
        llm.generate([PROMPTS[0]], params, use_tqdm=False)
    assert answers(llm, structured_outputs=StructuredOutputsParams(choice=["y"]))[0].text == "y", "the next compiles"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "expected one of json, regex, choice, grammar, json_object, got none"),
        ({"json_object": False}, "expected one of .*, got none"),
        ({"json": {}, "regex": "a"}, "expected one of .*, got json and regex"),
        ({"json": 3}, "json: expected a JSON schema, got 3"),
        ({"regex": 3}, "regex: expected text, got 3"),
        ({"choice": []}, "choice: expected a non-empty list of non-empty texts"),
        ({"choice": ["a", ""]}, "choice: expected a non-empty list of non-empty texts"),
        ({"choice": "yes"}, "choice: expected a list, got 'yes'"),
    ],
)
def test_a_grammar_is_one_of_the_kinds(given, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        StructuredOutputsParams(**given)


def test_other_rules_that_leave_no_token_end_the_request_with_an_error(llm):
    bound = StructuredOutputsParams(choice=["zz"])
    with pytest.raises(ValueError, match=r"^min_tokens: expected 0 beside structured_outputs, got 3"):
        SamplingParams(min_tokens=3, structured_outputs=bound)
    with pytest.raises(ValueError, match=r"^structured_outputs: expected StructuredOutputsParams, got {'json': {}}"):
        SamplingParams(structured_outputs={"json": {}})


def test_a_grammar_is_compiled_once_and_found_on_disk_by_the_next_compiler(llm, tmp_path, monkeypatch):
    def compiler():
        return compile_grammar.GrammarCompiler(llm.get_tokenizer, tiny.VOCAB_SIZE, tmp_path / "cache")

    grammar = StructuredOutputsParams(json=SCHEMA)
    first = compiler()
    assert first.compile(grammar) is first.compile(StructuredOutputsParams(json=json.dumps(SCHEMA)))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(compile_grammar.BoundedProcess, "ask", lambda *given: pytest.fail("compiled again"))
    compiler().compile(grammar)
    for file in (tmp_path / "cache").iterdir():
        file.write_text("{}")
    monkeypatch.undo()
    compiler().compile(grammar)  # what cannot be read is compiled again


def test_the_cache_keeps_the_newest_files(llm, tmp_path, monkeypatch):
    monkeypatch.setattr(compile_grammar, "MAX_CACHED_FILES", 2)
    compiler = compile_grammar.GrammarCompiler(llm.get_tokenizer, tiny.VOCAB_SIZE, tmp_path)
    for choice in "abc":
        compiler.compile(StructuredOutputsParams(choice=[choice]))
    assert len(list(tmp_path.iterdir())) == 2


def test_without_xgrammar_a_request_is_told_what_to_install(llm, monkeypatch):
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="never compiled before"))
    with pytest.raises(ValueError, match=r"structured outputs need xgrammar .*; pip install --no-deps xgrammar apache"):
        llm.check_request(np.array(PROMPTS[0]), params)
