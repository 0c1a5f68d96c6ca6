"""SamplingParams: vLLM's names and defaults; every bad value is refused by name."""

import msgspec
import pytest

from batchllm import SamplingParams, StructuredOutputsParams

VLLM_DEFAULTS = {
    "n": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "seed": None,
    "stop": None,
    "stop_token_ids": None,
    "ignore_eos": False,
    "max_tokens": 16,
    "min_tokens": 0,
    "include_stop_str_in_output": False,
    "skip_special_tokens": True,
    "prompt_logprobs": None,
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
    ({"prompt_logprobs": -1}, "prompt_logprobs: expected an integer >= 0, got -1"),
    ({"prompt_logprobs": True}, "prompt_logprobs: expected an integer >= 0, got True"),
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
