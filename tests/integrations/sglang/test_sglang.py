"""What the adapter calls is what the package has, read from its source, since it does not start without a GPU; what the
adapter does is shown with an engine that has the package's own signature and answers with what it was given."""

import ast
import re
from collections.abc import Callable
from importlib.metadata import distribution
from types import SimpleNamespace
from typing import Any

import pytest

from batchllm.integrations import requirement
from batchllm.integrations.sglang import DEFAULT_MAX_NEW_TOKENS, generate

CONTEXT_LEN = 600


def source(path: str) -> str:
    return distribution("sglang").locate_file(f"sglang/srt/{path}").read_text()


def definition(path: str, *names: str) -> Any:
    """Of a class, or of a function in one."""
    node: Any = ast.parse(source(path))
    for name in names:
        node = next(child for child in node.body if getattr(child, "name", None) == name)
    return node


def defaults(path: str) -> dict[str, Any]:
    """Of the fields that a file's classes declare, those that are constants."""
    return {
        node.target.id: node.value.value
        for node in ast.walk(ast.parse(source(path)))
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(node.value, ast.Constant)
    }


def with_the_signature_of_the_package(answer: Callable[..., Any]) -> Callable[..., Any]:
    """`Engine.generate` as it is declared; its body calls `answer` with its arguments by name."""
    function = definition("entrypoints/engine.py", "Engine", "generate")
    for argument in (*function.args.args, *function.args.kwonlyargs):
        argument.annotation = None
    function.returns, function.decorator_list = None, []
    function.body = ast.parse("return answer(**{k: v for k, v in locals().items() if k != 'self'})").body
    names: dict[str, Any] = {"answer": answer}
    exec(compile(ast.fix_missing_locations(ast.Module([function], [])), "engine.py", "exec"), names)
    return names["generate"]


class FakeEngine:
    """Answers each prompt with its last token, and keeps what it was asked."""

    def __init__(self) -> None:
        self.tokenizer_manager = SimpleNamespace(
            tokenizer=SimpleNamespace(encode=lambda text: [ord(letter) for letter in text]),
            context_len=CONTEXT_LEN,
            num_reserved_tokens=0,
            allow_auto_truncate=False,
        )
        self.server_args = SimpleNamespace(chunked_prefill_size=90, max_prefill_tokens=16384)
        self.generate = with_the_signature_of_the_package(self.answer).__get__(self)
        self.asked: dict[str, Any] = {}

    def answer(self, **arguments: Any) -> list[dict[str, Any]]:
        self.asked = arguments
        ids, params, rids = (arguments[name] for name in ("input_ids", "sampling_params", "rid"))
        return [
            {"output_ids": [prompt[-1]] * p["max_new_tokens"], "meta_info": {"id": rid}}
            for prompt, p, rid in zip(ids, params, rids, strict=True)
        ]


def job() -> list[list[int]]:
    """Three readers of each of four prefixes of 90 tokens."""
    return [[document] * 90 + [10 * document + reader] for reader in range(3) for document in range(4)]


def last_tokens(prompts: list[list[int]]) -> list[int]:
    return [prompt[-1] for prompt in prompts]


def test_outputs_come_back_in_the_order_of_the_prompts():
    prompts = [*job(), "text"]
    params = [{"max_new_tokens": 1 + index % 3} for index in range(len(prompts))]
    outputs = generate(FakeEngine(), prompts, params)
    assert [output["output_ids"] for output in outputs] == [
        [prompt[-1] if prompt != "text" else ord("t")] * p["max_new_tokens"]
        for prompt, p in zip(prompts, params, strict=True)
    ]


def test_first_readers_go_two_steps_ahead():
    engine = FakeEngine()
    generate(engine, job(), {"max_new_tokens": 4})
    assert last_tokens(engine.asked["input_ids"]) == [0, 10, 20, 1, 2, 30, 11, 12, 21, 22, 31, 32]


@pytest.mark.parametrize(("chunk", "place"), [(45, 2), (90, 3), (200, 4), (-1, 4), (None, 4)])
def test_a_step_is_a_chunk_where_there_are_chunks(chunk, place):
    engine = FakeEngine()
    engine.server_args.chunked_prefill_size = chunk
    generate(engine, job(), {"max_new_tokens": 4})
    assert last_tokens(engine.asked["input_ids"]).index(1) == place


def test_the_group_stands_in_the_request_id():
    engine, prompts = FakeEngine(), job()
    ids = [output["meta_info"]["id"].split("-") for output in generate(engine, prompts, {"max_new_tokens": 1})]
    assert len({job for job, _, _ in ids}) == 1
    assert [int(index) for _, _, index in ids] == list(range(len(prompts)))
    documents = [prompt[0] for prompt in prompts]
    assert len({(group, document) for (_, group, _), document in zip(ids, documents, strict=True)}) == 4
    assert len(set(engine.asked["rid"])) == len(prompts)


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([5] * CONTEXT_LEN, {"max_new_tokens": None}, "the prompt has 600 tokens, and the model takes 600"),
        ([5] * (CONTEXT_LEN - 9), {"max_new_tokens": 10}, "the prompt has 591 tokens"),
        ([5] * (CONTEXT_LEN - DEFAULT_MAX_NEW_TOKENS + 1), {}, "the prompt has 473 tokens"),
        ([], {"max_new_tokens": 1}, "the prompt is empty"),
    ],
)
def test_a_prompt_that_does_not_fit_ends_alone(prompt, params, message):
    engine = FakeEngine()
    first, refused, last = generate(
        engine, [[1, 2], prompt, [3]], [{"max_new_tokens": 2}, params, {"max_new_tokens": 1}]
    )
    assert (first["output_ids"], last["output_ids"]) == ([2, 2], [3])
    assert refused["output_ids"] == []
    assert refused["meta_info"]["finish_reason"]["type"] == "abort"
    assert message in refused["meta_info"]["finish_reason"]["message"]
    assert refused["meta_info"]["prompt_tokens"] == len(prompt)


def test_where_the_engine_truncates_nothing_is_refused():
    engine = FakeEngine()
    engine.tokenizer_manager.allow_auto_truncate = True
    [output] = generate(engine, [[5] * CONTEXT_LEN], {"max_new_tokens": 1})
    assert output["output_ids"] == [5]


def test_the_engine_is_not_asked_for_nothing():
    engine = FakeEngine()
    assert generate(engine, []) == []
    assert generate(engine, [[]])[0]["output_ids"] == []
    assert engine.asked == {}


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ([[1], [2]], [{}], "params: expected one for each of 2 prompts, got 1"),
        ([[1], [2]], [{}, 7], r"params\[1\]: expected a dict, got int"),
        ([[1]], {"n": 2}, r"params\[0\]: n: expected 1, got 2: repeat the prompt n times"),
        ([[1], ["a"]], None, r"prompts\[1\]: expected integers of 32 bits"),
    ],
)
def test_what_is_no_job_is_refused_before_anything_runs(prompts, params, message):
    engine = FakeEngine()
    with pytest.raises(ValueError, match=message):
        generate(engine, prompts, params)
    assert engine.asked == {}


def test_a_version_that_is_not_known_is_refused(monkeypatch):
    monkeypatch.setattr(requirement, "version", lambda name: "0.5.24")
    with pytest.raises(ImportError, match=r"knows sglang >=0.5.23,<0.5.24, found 0.5.24: pip install"):
        generate(FakeEngine(), [[1]])


def test_the_package_has_what_is_read():
    for path, names in {
        "managers/tokenizer_manager.py": ("tokenizer", "context_len", "num_reserved_tokens", "allow_auto_truncate"),
        "entrypoints/engine.py": ("tokenizer_manager", "server_args"),
    }.items():
        for name in names:
            assert re.search(rf"^ +self\.{name} = ", source(path), re.MULTILINE), name


def test_the_package_s_defaults_are_those_that_are_assumed():
    options = defaults("arg_groups/fields/schedule.py")
    assert options["schedule_policy"] == "fcfs"
    assert {"chunked_prefill_size", "max_prefill_tokens"} <= options.keys()
    assert defaults("sampling/sampling_params.py")["max_new_tokens"] == DEFAULT_MAX_NEW_TOKENS


def test_the_package_refuses_what_is_refused_here():
    """By the same comparisons, each of which raises for the whole job."""
    lines = source("managers/tokenizer_manager.py")
    assert "input_token_num += self.num_reserved_tokens" in lines
    assert "if input_token_num >= self.context_len:" in lines
    assert "(max_new_tokens + input_token_num) > _max_req_len" in lines
    assert "_max_req_len = self.context_len" in lines
