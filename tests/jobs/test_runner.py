"""From an input file to an output file: every line is answered, or reported, exactly once."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchllm.jobs.files import RecordFile
from batchllm.jobs.run import BatchFiles, JobInterrupted, JobSummary, RunOptions, run_batch_file
from batchllm.outputs import RequestOutput
from tests.jobs.batch_lines import chat_line, completion_line, read_records, write_lines
from tests.jobs.fake_llm import FakeLLM


@pytest.fixture
def files(tmp_path: Path) -> BatchFiles:
    return BatchFiles(tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "errors.jsonl", overwrite=True)


def run(files: BatchFiles, llm: FakeLLM | None = None, **options: Any) -> JobSummary:
    calls = {name: options.pop(name) for name in ("load_llm", "on_progress") if name in options}
    options = {"model_name": "dir", "chat_max_tokens": 256, **options}
    return run_batch_file(files, calls.pop("load_llm", lambda: llm or FakeLLM()), RunOptions(**options), **calls)


def answers(files: BatchFiles) -> dict[str, Any]:
    records = read_records(files.output)
    assert all(record["error"] is None for record in records)
    by_id = {record["custom_id"]: record["response"]["body"] for record in records}
    assert len(by_id) == len(records)
    return by_id


def failures(files: BatchFiles) -> dict[int, str]:
    records = read_records(files.errors)
    assert all(record["response"] is None for record in records)
    by_line = {record["error"]["line"]: record["error"]["code"] for record in records}
    assert len(by_line) == len(records)
    return by_line


def test_every_line_is_answered_or_reported(files: BatchFiles) -> None:
    write_lines(
        files.input,
        [
            b"\xef\xbb\xbf" + json.dumps(chat_line("a", "Hi")).encode() + b"\r",  # BOM and CR, as Windows writes them
            b"not json",
            b"",
            b"  \t ",
            completion_line("b", "four"),
            chat_line("a", "again"),
            completion_line("long", "x" * 500),
            completion_line("empty", ""),
            completion_line("tokens", [1, 999]),
            completion_line("one bad prompt", ["fine", ""]),
            completion_line("c", ["one", "three"], n=2),
        ],
    )
    summary = run(files)
    assert (summary.num_answered, summary.num_failed) == (3, 6)
    assert failures(files) == {
        2: "invalid_json_line",
        6: "duplicate_custom_id",
        7: "invalid_prompt",
        8: "invalid_prompt",
        9: "invalid_prompt",
        10: "invalid_prompt",
    }
    body = answers(files)
    assert body["a"]["choices"][0]["message"]["content"] == "8 tokens, sample 0"
    assert body["b"]["choices"][0]["text"] == "4 tokens, sample 0"
    assert [choice["text"] for choice in body["c"]["choices"]] == [
        "3 tokens, sample 0",
        "3 tokens, sample 1",
        "5 tokens, sample 0",
        "5 tokens, sample 1",
    ]


def test_errors_of_a_prompt_say_why(files: BatchFiles) -> None:
    write_lines(files.input, [chat_line("long", "x" * 500), completion_line("empty", "")])
    run(files)
    errors = {record["custom_id"]: record["error"] for record in read_records(files.errors)}
    assert errors["long"]["message"] == "body.messages: the prompt has 506 tokens, and the model takes 500"
    assert errors["empty"]["message"] == "body.prompt: the prompt is empty"


def test_a_chat_template_may_refuse_one_conversation(files: BatchFiles) -> None:
    class Strict(FakeLLM):
        def apply_chat_template(self, messages: list[dict[str, str]]) -> list[int]:
            if messages[0]["role"] != "user":
                raise ValueError("roles must alternate")
            return super().apply_chat_template(messages)

    bad = chat_line("bad", messages=[{"role": "assistant", "content": "Me first."}])
    write_lines(files.input, [bad, chat_line("good")])
    run(files, Strict())
    assert failures(files) == {1: "invalid_prompt"}
    assert answers(files).keys() == {"good"}


def test_conversations_are_rendered_together_where_they_ask_for_the_same(files: BatchFiles) -> None:
    class Counting(FakeLLM):
        sizes: list[int] = []  # noqa: RUF012

        def apply_chat_templates(self, conversations: list[Any], **options: Any) -> list[list[int]]:
            self.sizes.append(len(conversations))
            return super().apply_chat_templates(conversations, **options)

    tools = [{"type": "function", "function": {"name": "f"}}]
    write_lines(files.input, [chat_line(f"{i}", **({"tools": tools} if i % 2 else {})) for i in range(100)])
    run(files, Counting())
    assert Counting.sizes == [32, 18, 32, 18]


def test_variables_of_the_chat_template_reach_it(files: BatchFiles) -> None:
    class Thinking(FakeLLM):
        def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
            if options.get("chat_template_kwargs", {}).keys() - {"enable_thinking"}:
                raise ValueError("the chat template has no such variable")
            return super().apply_chat_template(messages) + [1] * len(options)

    known = chat_line("known", chat_template_kwargs={"enable_thinking": False})
    unknown = chat_line("unknown", chat_template_kwargs={"enable_thinkin": False})
    write_lines(files.input, [known, unknown, chat_line("plain")])
    run(files, Thinking())
    assert failures(files) == {2: "invalid_prompt"}
    lengths = {name: body["usage"]["prompt_tokens"] for name, body in answers(files).items()}
    assert lengths["known"] == lengths["plain"] + 1


def test_the_summary_counts_lines_of_another_model_and_answers_that_were_cut(files: BatchFiles) -> None:
    class Short(FakeLLM):
        def generate_as_completed(self, *args: Any, **options: Any) -> Iterator[tuple[int, RequestOutput]]:
            for index, output in super().generate_as_completed(*args, **options):
                if index == 0:
                    output.outputs[-1].finish_reason, output.outputs[-1].stop_reason = "length", "max_model_len"
                yield index, output

    lines = [completion_line("a", n=2), completion_line("b", model="gpt-4o"), completion_line("c", model="org/dir")]
    write_lines(files.input, lines)
    summary = run(files, Short())
    assert (summary.num_answered, summary.num_cut, summary.num_other_model) == (3, 1, 1)
    assert {body["model"] for body in answers(files).values()} == {"dir"}
    reasons = [choice.get("stop_reason") for choice in answers(files)["a"]["choices"]]
    assert reasons == [None, "max_model_len"]


def test_a_job_that_fails_while_it_runs_says_what_it_has(files: BatchFiles) -> None:
    class Failing(FakeLLM):
        def generate_as_completed(self, *args: Any, **options: Any) -> Iterator[tuple[int, RequestOutput]]:
            yield next(super().generate_as_completed(*args, **options))
            raise ValueError("the logits are not finite")

    write_lines(files.input, [completion_line("a"), completion_line("b")])
    with pytest.raises(ValueError, match=r"the logits are not finite; the answers so far are in .*out\.jsonl"):
        run(files, Failing())
    assert answers(files).keys() == {"b"}


def test_nothing_is_replaced_before_the_model_stands_and_every_file_is_ours(tmp_path: Path) -> None:
    names = ("out.jsonl", "errors.jsonl")
    for name in names:
        (tmp_path / name).write_text("old")
    source = write_lines(tmp_path / "in.jsonl", [completion_line("a")])
    with ExitStack() as other_job:

        def load_llm() -> FakeLLM:
            assert [(tmp_path / name).read_text() for name in names] == ["old", "old"]
            other_job.enter_context(RecordFile("errors", tmp_path / "errors.jsonl", overwrite=True))
            return FakeLLM()

        with pytest.raises(BlockingIOError, match=r"errors .* another job is writing it"):
            run(BatchFiles(source, *(tmp_path / name for name in names), overwrite=True), load_llm=load_llm)
    assert [(tmp_path / name).read_text() for name in names] == ["old", "old"]


@pytest.mark.parametrize("error", [ValueError("no pool"), MemoryError(), KeyboardInterrupt()])
def test_old_answers_stay_until_there_is_a_new_one(files: BatchFiles, error: BaseException) -> None:
    class Refusing(FakeLLM):
        def generate_as_completed(self, *args: Any, **options: Any) -> Iterator[tuple[int, RequestOutput]]:
            raise error

    assert files.errors
    write_lines(files.input, [completion_line("a"), b"bad"])
    files.output.write_text("old answers")
    files.errors.write_text("old errors")
    with pytest.raises(type(error), match=f"^{error}$"):
        run(files, Refusing())
    assert (files.output.read_text(), files.errors.read_text()) == ("old answers", "old errors")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.lists(st.one_of(st.binary(), st.text().map(str.encode)), max_size=4))
def test_garbage_lines_are_one_error_each_and_end_nothing(files: BatchFiles, garbage: list[bytes]) -> None:
    lines = [part for data in garbage for part in data.split(b"\n")]
    write_lines(files.input, [chat_line("first"), *lines, completion_line("last")])
    run(files)
    assert answers(files).keys() == {"first", "last"}
    assert failures(files).keys() == {
        line for line, data in enumerate(lines, start=2) if data.strip() and data.replace(b"\xef\xbb\xbf", b"").strip()
    }


JSON_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-5, 5),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=5),
    ),
    lambda values: st.one_of(st.lists(values, max_size=3), st.dictionaries(st.text(max_size=5), values, max_size=3)),
    max_leaves=6,
)
FIELDS = [
    *("model", "messages", "prompt", "role", "content", "n", "max_tokens", "max_completion_tokens", "min_tokens"),
    *("temperature", "top_p", "top_k", "seed", "stop", "stop_token_ids", "ignore_eos"),
    *("tools", "logprobs", "stream", "logit_bias", "user", "other"),
]
BODIES = st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=5)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bodies=st.lists(st.tuples(st.booleans(), BODIES), min_size=1, max_size=4))
def test_any_body_is_answered_or_reported(files: BatchFiles, bodies: list[tuple[bool, dict[str, Any]]]) -> None:
    lines = [
        chat_line(str(i), **body) if is_chat else completion_line(str(i), **{"prompt": "Hello", **body})
        for i, (is_chat, body) in enumerate(bodies)
    ]
    write_lines(files.input, lines)
    summary = run(files)
    reported = {record["custom_id"] for record in read_records(files.errors)}
    assert answers(files).keys() | reported == {str(i) for i in range(len(lines))}
    assert not answers(files).keys() & reported
    assert summary.num_answered + summary.num_failed == len(lines)


def test_an_answer_is_in_the_file_before_the_next_one_is_made(files: BatchFiles) -> None:
    write_lines(files.input, [completion_line(str(i)) for i in range(4)] + [b"bad"])
    seen: list[int] = []
    llm = FakeLLM()
    llm.after_each = lambda: seen.append(len(read_records(files.output)))
    run(files, llm)
    assert seen == [1, 2, 3, 4]


def test_a_job_that_breaks_keeps_its_answers_and_its_errors(files: BatchFiles) -> None:
    write_lines(files.input, [completion_line("a"), completion_line("b", ["one", "two"]), b"bad", completion_line("c")])
    llm = FakeLLM()

    def break_in_the_middle() -> None:
        if len(read_records(files.output)) == 1:
            llm.after_each = break_now

    def break_now() -> None:
        raise KeyboardInterrupt

    llm.after_each = break_in_the_middle
    with pytest.raises(JobInterrupted):
        run(files, llm)
    assert answers(files).keys() == {"c"}  # one of b's two prompts was answered: b is not
    assert failures(files) == {3: "invalid_json_line"}


def test_what_a_line_does_not_give_is_the_models(files: BatchFiles) -> None:
    llm = FakeLLM()
    llm.sampling_defaults = {"temperature": 0.6, "top_k": 20, "max_tokens": 7}
    write_lines(files.input, [completion_line("a"), completion_line("b", temperature=0, top_k=0)])
    run(files, llm)
    assert [(p.temperature, p.top_k, p.top_p, p.max_tokens) for p in llm.params] == [(0.6, 20, 1, 16), (0, 0, 1, 16)]


def test_an_answer_that_cannot_be_decoded_is_its_lines_error(files: BatchFiles) -> None:
    class Undecodable(FakeLLM):
        def generate_as_completed(self, *args: Any, **options: Any) -> Iterator[tuple[int, RequestOutput]]:
            for index, output in super().generate_as_completed(*args, **options):
                if index == 1:
                    output.outputs[-1].finish_reason, output.outputs[-1].stop_reason = "error", "it panicked"
                yield index, output

    write_lines(files.input, [completion_line("a"), completion_line("b", n=2), completion_line("c")])
    summary = run(files, Undecodable())
    assert answers(files).keys() == {"a", "c"}
    assert [record["error"]["message"] for record in read_records(files.errors)] == ["it panicked"]
    assert (summary.num_answered, summary.num_failed) == (2, 1)


def test_a_template_that_renders_nothing_ends_the_job_before_anything_is_written(files: BatchFiles) -> None:
    class Broken(FakeLLM):
        def check_chat_template(self) -> None:
            raise ValueError("dir: the chat template does not compile")

    write_lines(files.input, [completion_line("a")])
    run(files, Broken())
    assert answers(files).keys() == {"a"}, "without conversations nobody asks"
    files.output.unlink()
    write_lines(files.input, [completion_line("a"), chat_line("b")])
    with pytest.raises(ValueError, match=r"^dir: the chat template does not compile$"):
        run(files, Broken())
    assert not files.output.exists()


def test_seeds_do_not_depend_on_the_order_of_the_file(files: BatchFiles) -> None:
    lines = [completion_line("a"), completion_line("b", ["x", "y"]), completion_line("c", seed=3)]
    seeds = []
    for order in (lines, lines[::-1]):
        llm = FakeLLM()
        write_lines(files.input, order)
        run(files, llm, seed=5)
        seeds.append(sorted(params.seed or 0 for params in llm.params))
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 4
    llm = FakeLLM()
    run(files, llm, seed=6)
    assert len({params.seed for params in llm.params} & set(seeds[0])) == 1  # the one that the line names


def test_an_empty_input_gives_empty_files(files: BatchFiles) -> None:
    write_lines(files.input, [])
    assert run(files) == JobSummary(0, 0, {})
    assert files.output.read_bytes() == files.errors.read_bytes() == b""


def test_progress_is_passed_on(files: BatchFiles) -> None:
    write_lines(files.input, [completion_line("a", max_tokens=7), completion_line("b", n=3, max_tokens=10)])
    seen: list[tuple[int, int]] = []
    run(files, on_progress=lambda p: seen.append((p.finished_requests, p.num_requests)))
    assert seen == [(3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input": "missing.jsonl"}, FileNotFoundError, "missing.jsonl': no such file"),
        ({"input": "."}, IsADirectoryError, "Is a directory"),
        ({"output": "in.jsonl"}, ValueError, "output .*in.jsonl': is the input file"),
        ({"output": "sub/../in.jsonl"}, ValueError, "is the input file"),
        ({"output": "sub"}, IsADirectoryError, "output .*sub': is a directory"),
        ({"output": "nowhere/out.jsonl"}, FileNotFoundError, "output .*: no such directory .*nowhere"),
        ({"errors": "nowhere/out.jsonl"}, FileNotFoundError, "errors .*: no such directory .*nowhere"),
        ({"errors": "in.jsonl"}, ValueError, "errors .*in.jsonl': is the input file"),
        ({"errors": "out.jsonl"}, ValueError, "errors .*out.jsonl': is the output file"),
        ({"summary": "in.jsonl"}, ValueError, "summary .*in.jsonl': is the input file"),
        ({"summary": "errors.jsonl"}, ValueError, "summary .*errors.jsonl': is the errors file"),
        ({"output": "link.jsonl"}, ValueError, "is the input file"),
    ],
)
def test_files_are_checked_before_the_model_is_loaded(
    tmp_path: Path, changes: dict[str, str], error: type[Exception], message: str
) -> None:
    paths = {"input": "in.jsonl", "output": "out.jsonl", "errors": "errors.jsonl"} | changes
    (tmp_path / "sub").mkdir()
    data = write_lines(tmp_path / "in.jsonl", [completion_line("a")]).read_bytes()
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")

    def load_llm() -> FakeLLM:
        raise AssertionError("loaded")

    files = BatchFiles(**{name: tmp_path / path for name, path in paths.items()})
    with pytest.raises(error, match=message):
        run(files, load_llm=load_llm)
    assert (tmp_path / "in.jsonl").read_bytes() == data
    assert not (tmp_path / "out.jsonl").exists()


def test_files_that_cannot_be_written_are_refused(files: BatchFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(files.input, [completion_line("a")])
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(PermissionError, match=r"output .*out\.jsonl': not writable"):
        run(files)


def test_a_model_that_cannot_be_loaded_leaves_old_answers_alone(files: BatchFiles) -> None:
    write_lines(files.input, [completion_line("a")])
    files.output.write_text("old answers")

    def load_llm() -> FakeLLM:
        raise FileNotFoundError("no such model")

    with pytest.raises(FileNotFoundError, match="no such model"):
        run(files, load_llm=load_llm)
    assert files.output.read_text() == "old answers"
