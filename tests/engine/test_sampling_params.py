"""SamplingParams: vLLM's names and defaults; every bad value is refused by name."""

import msgspec
import pytest

from batchllm import SamplingParams, StructuredOutputsParams

VLLM_DEFAULTS = {
    "n": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": None,
    "seed": None,
    "stop": None,
    "stop_token_ids": None,
    "ignore_eos": False,
    "max_tokens": 16,
    "min_tokens": 0,
    "include_stop_str_in_output": False,
    "skip_special_tokens": True,
    "logprobs": None,
    "logprob_token_ids": None,
    "prompt_logprobs": None,
    "prompt_logprobs_start": 1,  # ours
    "structured_outputs": None,
}

REFUSED = [
    ({"n": 0}, "n: expected an integer >= 1, got 0"),
    ({"n": 1.0}, "n: expected an integer >= 1, got 1.0"),
    ({"n": True}, "n: expected an integer >= 1, got True"),
    ({"temperature": -0.1}, "temperature: expected a number >= 0, got -0.1"),
    ({"temperature": float("nan")}, "temperature: expected a finite number, got nan"),
    ({"temperature": float("inf")}, "temperature: expected a finite number, got inf"),
    ({"temperature": "hot"}, "temperature: expected a finite number, got 'hot'"),
    ({"top_p": 0}, r"top_p: expected a number in \(0, 1\], got 0"),
    ({"top_p": 1.01}, r"top_p: expected a number in \(0, 1\], got 1.01"),
    ({"top_p": None}, "top_p: expected a finite number, got None"),
    ({"top_k": -2}, "top_k: expected an integer >= -1, got -2"),
    ({"top_k": 2.5}, "top_k: expected an integer >= -1, got 2.5"),
    ({"seed": "0"}, "seed: expected an integer, got '0'"),
    ({"seed": 0.5}, "seed: expected an integer, got 0.5"),
    ({"max_tokens": 0}, "max_tokens: expected an integer >= 1, got 0"),
    ({"max_tokens": 8.0}, "max_tokens: expected an integer >= 1, got 8.0"),
    ({"min_tokens": -1}, "min_tokens: expected an integer >= 0, got -1"),
    ({"min_tokens": None}, "min_tokens: expected an integer >= 0, got None"),
    ({"min_tokens": 9, "max_tokens": 8}, r"min_tokens: expected at most max_tokens \(8\), got 9"),
    ({"stop": ""}, "stop: expected .*, got ''"),
    ({"stop": ["a", ""]}, "stop: expected .*, got ''"),
    ({"stop": ["a", 5]}, "stop: expected .*, got 5"),
    ({"stop": 5}, "stop: expected .*, got 5"),
    ({"stop_token_ids": [-1]}, "stop_token_ids: expected an integer >= 0, got -1"),
    ({"stop_token_ids": ["2"]}, "stop_token_ids: expected an integer >= 0, got '2'"),
    ({"stop_token_ids": 5}, "stop_token_ids: expected .*, got 5"),
    ({"ignore_eos": "no"}, "ignore_eos: expected .*, got 'no'"),
    ({"include_stop_str_in_output": 2}, "include_stop_str_in_output: expected .*, got 2"),
    ({"min_p": -0.1}, "min_p: expected a number from 0 to 1, got -0.1"),
    ({"min_p": 1.5}, "min_p: expected a number from 0 to 1, got 1.5"),
    ({"presence_penalty": 2.1}, "presence_penalty: expected a number from -2 to 2, got 2.1"),
    ({"presence_penalty": None}, "presence_penalty: expected a finite number, got None"),
    ({"frequency_penalty": -3}, "frequency_penalty: expected a number from -2 to 2, got -3"),
    ({"frequency_penalty": float("nan")}, "frequency_penalty: expected a finite number, got nan"),
    ({"repetition_penalty": 0}, r"repetition_penalty: expected a number from 1e-06 to 1e\+06, got 0"),
    ({"repetition_penalty": -1.2}, r"repetition_penalty: expected a number from 1e-06 to 1e\+06, got -1.2"),
    ({"logit_bias": [5]}, r"logit_bias: expected a dict of token ids and numbers, got \[5\]"),
    ({"logit_bias": {"5": 1}}, "logit_bias: expected an integer >= 0, got '5'"),
    ({"logit_bias": {-5: 1}}, "logit_bias: expected an integer >= 0, got -5"),
    ({"logit_bias": {5: 101}}, r"logit_bias\[5\]: expected a number from -100 to 100, got 101"),
    ({"logit_bias": {5: "no"}}, r"logit_bias\[5\]: expected a finite number, got 'no'"),
    ({"allowed_token_ids": []}, r"allowed_token_ids: expected at least one token id, got \[\]"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids: expected an integer >= 0, got -1"),
    ({"allowed_token_ids": 5}, "allowed_token_ids: expected a list, got 5"),
    ({"bad_words": "no"}, "bad_words: expected a list, got 'no'"),
    ({"bad_words": ["no", ""]}, "bad_words: expected non-empty strings, got ''"),
    ({"bad_words": [5]}, "bad_words: expected non-empty strings, got 5"),
    ({"logprobs": -2}, "logprobs: expected an integer >= -1, got -2"),
    ({"logprobs": True}, "logprobs: expected an integer >= -1, got True"),
    ({"logprob_token_ids": [1.5]}, "logprob_token_ids: expected an integer >= 0, got 1.5"),
    ({"prompt_logprobs_start": 0}, "prompt_logprobs_start: expected an integer >= 1, got 0"),
    ({"prompt_logprobs": -2}, "prompt_logprobs: expected an integer >= -1, got -2"),
    ({"prompt_logprobs": True}, "prompt_logprobs: expected an integer >= -1, got True"),
    ({"skip_special_tokens": None}, "skip_special_tokens: expected .*, got None"),
]


def test_names_and_defaults_are_vllms():
    assert msgspec.structs.asdict(SamplingParams()) == VLLM_DEFAULTS


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[str(fields) for fields, _ in REFUSED])
def test_a_bad_value_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SamplingParams(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": -1},
        {"top_p": 1},
        {"temperature": 0},
        {"seed": -5},
        {"seed": 2**70},
        {"stop": []},
        {"stop_token_ids": []},
        {"min_p": 1, "presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 1e-6},
        {"logit_bias": {}, "bad_words": [], "logprob_token_ids": []},
        {"logit_bias": {0: -100, 5: 100.0}, "allowed_token_ids": [0]},
        {"logprobs": -1, "prompt_logprobs": -1},
        {"max_tokens": None, "min_tokens": 1000},
        {"max_tokens": 8, "min_tokens": 8},
    ],
    ids=str,
)
def test_values_at_the_border_are_taken(fields):
    SamplingParams(**fields)


def test_one_stop_string_may_stand_without_a_list():
    assert SamplingParams(stop="END").stop_strings == SamplingParams(stop=["END"]).stop_strings == ["END"]


def test_fields_are_named_and_fixed():
    with pytest.raises(TypeError):
        SamplingParams(1)
    with pytest.raises(TypeError):
        SamplingParams(best_of=2)
    with pytest.raises(AttributeError):
        SamplingParams().n = 2


def test_a_length_is_known_only_where_nothing_can_end_a_request_early() -> None:
    assert SamplingParams(ignore_eos=True).ends_only_at_max_tokens
    assert not SamplingParams().ends_only_at_max_tokens
    assert not SamplingParams(ignore_eos=True, stop_token_ids=[3]).ends_only_at_max_tokens
    assert not SamplingParams(ignore_eos=True, stop="\n").ends_only_at_max_tokens
    bounded = StructuredOutputsParams(choice=["yes"])
    assert not SamplingParams(ignore_eos=True, structured_outputs=bounded).ends_only_at_max_tokens
