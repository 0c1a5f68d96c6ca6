"""The answers of a job of many kinds of lines, as OpenAI's own package reads them."""

import itertools
import json
import math
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from batchllm.jobs.openai_logprobs import chat_logprobs, completion_logprobs
from batchllm.outputs import CompletionOutput, Logprob
from batchllm.sampling_params import SamplingParams
from tests.engine import tiny
from tests.jobs.batch_lines import chat_line, completion_line
from tests.jobs.test_end_to_end import model_dir, run

__all__ = ["model_dir"]  # a fixture

COMMON: list[dict[str, Any]] = [
    {},
    {"temperature": 0, "n": 2},
    {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "seed": 4},
    {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
    {"logit_bias": {"50": 10, "60": -100}, "max_tokens": 3},
    {"allowed_token_ids": [40, 50, 60], "logprob_token_ids": [40, 70]},
    {"bad_words": ["a", "bc"], "stop": ["e"], "include_stop_str_in_output": True},
    {"prompt_logprobs": 1, "max_new_tokens": 2},
    {"stop_token_ids": list(range(4, 130)), "n": 3},
]
NUM_LINES = 1000
CHAT = [{}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 3}, {"chat_template_kwargs": {}, "tools": []}]
COMPLETIONS = [{}, {"logprobs": 0}, {"logprobs": 4}, {"prompt": ["one", "two"]}, {"prompt": [[5, 6], [7]]}]
ECHOES = [
    {"echo": True, "prompt": ["one", "two"], "n": 2},
    {"echo": True, "logprobs": 2, "prompt": [[5, 6], [7]]},
    {"echo": True, "logprobs": 0, "max_tokens": 0},
    {"echo": True, "max_tokens": 0},
]
NOTHING = {"$ref": "#/$defs/nothing", "$defs": {"nothing": {"enum": [{}]}}}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": NOTHING}} for name in "fg"]
CALLS = [
    {"tool_choice": "required", "tools": TOOLS, "max_tokens": 200, "parallel_tool_calls": False},
    {"tool_choice": "required", "tools": TOOLS, "max_tokens": 4, "logprobs": True},
    {"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": TOOLS, "max_tokens": 20, "n": 2},
]


def valid(kind: type[ChatCompletion] | type[Completion], body: dict[str, Any]) -> Any:
    """As the package's type, each field checked."""
    return kind.model_validate_json(json.dumps(body), strict=True)


def with_first_logprob(answer: dict[str, Any]) -> dict[str, Any]:
    """Of an answer that repeats its prompt: OpenAI's API answers null for the first token, which nothing predicts;
    its package's types have no null there."""
    answer = deepcopy(answer)
    for choice in answer["choices"]:
        if choice["logprobs"] is not None:
            assert choice["logprobs"]["token_logprobs"][0] is choice["logprobs"]["top_logprobs"][0] is None
            choice["logprobs"]["token_logprobs"][0], choice["logprobs"]["top_logprobs"][0] = 0.0, {}
    return answer


@pytest.fixture(scope="module")
def lines() -> dict[str, dict[str, Any]]:
    bodies = [("chat", *pair) for pair in itertools.product(COMMON, CHAT)]
    bodies += [("text", *pair) for pair in itertools.product(COMMON, COMPLETIONS)]
    bodies += [("chat", {}, own) for own in CALLS] + [("text", {}, own) for own in ECHOES]
    bodies = list(itertools.islice(itertools.cycle(bodies), NUM_LINES))
    random.Random(0).shuffle(bodies)
    return {
        str(i): (chat_line if kind == "chat" else completion_line)(
            str(i), **{"content" if kind == "chat" else "prompt": f"Question {i % 7}", **common, **own}
        )
        for i, (kind, common, own) in enumerate(bodies)
    }


@pytest.fixture(scope="module")
def answers(model_dir: Path, lines: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    answers = run(model_dir, list(lines.values()), tmp_path_factory.mktemp("answers"), "--max-tokens", "5")
    assert answers.pop("")["num_failed"] == 0
    return answers


def test_every_answer_is_what_openais_types_say(lines: dict[str, Any], answers: dict[str, Any]) -> None:
    assert answers.keys() == lines.keys()
    for custom_id, line in lines.items():
        body, answer = line["body"], answers[custom_id]
        num_choices = body.get("n", 1)
        if "messages" in body:
            chat = valid(ChatCompletion, answer)
            for choice in chat.choices:
                asks = body.get("logprobs") or "logprob_token_ids" in body
                assert (choice.logprobs is not None) == bool(asks)
        else:
            completion = valid(Completion, with_first_logprob(answer) if body.get("echo") else answer)
            prompt = body["prompt"]
            num_choices *= len(prompt) if isinstance(prompt, list) else 1
            for choice in completion.choices:
                assert (choice.logprobs is not None) == ("logprobs" in body or "logprob_token_ids" in body)
        assert [choice["index"] for choice in answer["choices"]] == list(range(num_choices))
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] <= answer["usage"]["prompt_tokens"]


def test_calls_are_calls_of_the_tools(lines: dict[str, Any], answers: dict[str, Any]) -> None:
    asked = [(line["body"], answers[custom_id]) for custom_id, line in lines.items() if "tool_choice" in line["body"]]
    for body, answer in asked:
        for choice in valid(ChatCompletion, answer).choices:
            if body["max_tokens"] == 4:
                assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
                continue
            is_required = body["tool_choice"] == "required"
            assert choice.finish_reason == ("tool_calls" if is_required else "stop")
            [call] = choice.message.tool_calls
            assert json.loads(call.function.arguments) == {}
            assert call.function.name in ("f", "g") if is_required else call.function.name == "g"
    assert len(asked) >= len(CALLS)


def test_an_echo_is_the_prompt_before_its_completion(lines: dict[str, Any], answers: dict[str, Any]) -> None:
    asked = [(line["body"], answers[custom_id]) for custom_id, line in lines.items() if line["body"].get("echo")]
    for body, answer in asked:
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        for choice in answer["choices"]:
            prompt = prompts[choice["index"] // body.get("n", 1)]
            if isinstance(prompt, str):
                assert choice["text"].startswith(prompt)
            logprobs = choice["logprobs"]
            if logprobs is not None:
                num_tokens = len(logprobs["tokens"])
                assert {len(values) for values in logprobs.values()} == {num_tokens}
                assert num_tokens > (len(prompt) if body.get("max_tokens") != 0 else 1)
                assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
            if body.get("max_tokens") == 0:
                assert (choice["text"], choice["finish_reason"]) == (prompt, "length")
                assert answer["usage"]["completion_tokens"] == 0
                assert logprobs is None or "".join(logprobs["tokens"]) == f"<bos>{prompt}"
    assert len(asked) >= len(ECHOES)


def test_logprobs_of_a_chat_spell_its_content(lines: dict[str, Any], answers: dict[str, Any]) -> None:
    num_checked = 0
    for custom_id, line in lines.items():
        body = line["body"]
        if "messages" not in body or not body.get("logprobs"):
            continue
        answer = valid(ChatCompletion, answers[custom_id])
        total = sum(len(choice.logprobs.content) for choice in answer.choices)
        assert total == answer.usage.completion_tokens
        for choice in answer.choices:
            for token in choice.logprobs.content:
                num_named = len(body.get("logprob_token_ids", ()))
                assert body.get("top_logprobs", 0) <= len(token.top_logprobs)
                assert len(token.top_logprobs) <= body.get("top_logprobs", 0) + num_named
                values = [other.logprob for other in token.top_logprobs]
                assert values == sorted(values, reverse=True)
                assert token.bytes is None or bytes(token.bytes).decode() == token.token
            if choice.finish_reason == "length" and "\ufffd" not in choice.message.content:
                spelt = [token.token for token in choice.logprobs.content]
                shown = "".join(text for text in spelt if text not in tiny.SPECIAL_TOKENS)
                if "\ufffd" not in shown:
                    assert shown == choice.message.content
                    num_checked += 1
    assert num_checked


def test_logprobs_of_prompts_stand_where_vllm_puts_them(lines: dict[str, Any], answers: dict[str, Any]) -> None:
    for custom_id, line in lines.items():
        body, answer = line["body"], answers[custom_id]
        places = [answer] if "messages" in body else answer["choices"]
        for place in places:
            assert ("prompt_logprobs" in place) == ("prompt_logprobs" in body)
            if "prompt_logprobs" in body:
                first, *others = place["prompt_logprobs"]
                assert first is None
                assert all(1 <= len(entry) <= 2 for entry in others)


def completion(entry: dict[int, Logprob]) -> CompletionOutput:
    return CompletionOutput(0, "ab", [5, 6], -1.0, "length", logprobs=[entry, {6: Logprob(-math.inf, 9, "b\ufffd")}])


def test_a_chats_likeliest_tokens_are_without_the_sampled_one_where_it_is_not_likely() -> None:
    entry = {5: Logprob(-3.0, 4, "ab"), 7: Logprob(-0.5, 1, "c"), 8: Logprob(-1.0, 2, "d"), 9: Logprob(-9.0, 7, None)}
    by_count = chat_logprobs(completion(entry), SamplingParams(logprobs=2))
    assert by_count is not None
    first, second = by_count["content"]
    assert [other["token"] for other in first.pop("top_logprobs")] == ["c", "d"]
    assert first == {"token": "ab", "logprob": -3.0, "bytes": [97, 98]}
    assert (second["logprob"], second["bytes"]) == (-9999.0, None)
    named = chat_logprobs(completion(entry), SamplingParams(logprobs=0, logprob_token_ids=[9, 8]))
    assert named is not None
    assert [other["token"] for other in named["content"][0]["top_logprobs"]] == ["d", "token_id:9"]
    whole = chat_logprobs(completion(entry), SamplingParams(logprobs=-1))
    assert whole is not None
    assert len(whole["content"][0]["top_logprobs"]) == 4


def test_a_completions_offsets_are_those_of_its_tokens() -> None:
    assert completion_logprobs(completion({5: Logprob(-3.0, 4, "ab"), 7: Logprob(-0.5, 1, "c")})) == {
        "tokens": ["ab", "b\ufffd"],
        "token_logprobs": [-3.0, -9999.0],
        "top_logprobs": [{"ab": -3.0, "c": -0.5}, {"b\ufffd": -9999.0}],
        "text_offset": [0, 2],
    }
