"""Readers fed with whatever a file may hold: no bad line ends a job or harms a good one. BATCHLLM_FUZZ_SECONDS runs
longer."""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from batchllm.jobs.line import SCORE, BatchRequest, LineError
from batchllm.jobs.sources import Ask, open_source
from tests.jobs.batch_lines import chat_line, completion_line, score_line

BOM = b"\xef\xbb\xbf"
GOOD = [json.dumps(line).encode() for line in (chat_line("good chat"), completion_line("good text"))]
FUZZ_SECONDS = float(os.environ.get("BATCHLLM_FUZZ_SECONDS", "3"))

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),  # NaN and Infinity, too, as Python writes them
    st.text(max_size=8),
    st.sampled_from(["\ud800", "\x00", "\ufeff", "system", "user", "/v1/completions", "POST", "1e999"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(st.text(max_size=6), v, max_size=3)),
    max_leaves=8,
)
PATHS = [
    *(("custom_id",), ("method",), ("url",), ("body",), ("beside",), ("temperature",)),
    *(("body", name) for name in ("messages", "prompt", "model", "n", "max_tokens", "max_completion_tokens", "seed")),
    *(
        ("body", name)
        for name in ("stop", "stop_token_ids", "temperature", "top_p", "top_k", "min_tokens", "ignore_eos")
    ),
    *(("body", name) for name in ("tools", "logprobs", "logit_bias", "stream", "metadata", "chat_template_kwargs")),
    *(("body", name) for name in ("continuations", "response_format", "structured_outputs", "prompt_logprobs")),
    *(("body", "messages", 0), ("body", "messages", 0, "role"), ("body", "messages", 0, "content")),
    *(("body", "messages", 0, "tool_calls"), ("body", "messages", 0, "name"), ("body", "messages", 0, "other")),
]


KINDS_OF_LINE = [
    *(chat_line("changed"), completion_line("changed"), score_line("changed", "x", ["y", "z"])),
    completion_line("changed") | {"url": "/v1/perplexity"},
]


@st.composite
def wrong_lines(draw: st.DrawFn) -> bytes:
    """A good line with something else in a place or two, and a byte or two of it changed, lost or repeated."""
    line: Any = draw(st.sampled_from(KINDS_OF_LINE))
    line = json.loads(json.dumps(line))
    for path in draw(st.lists(st.sampled_from(PATHS), max_size=2)):
        place = line
        with contextlib.suppress(KeyError, IndexError, TypeError):  # where the first change left no such place
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = draw(VALUES)
    data = json.dumps(line, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        data = (
            data[:at]
            + draw(st.sampled_from([b"", b"\xff", b"\0", b'"', BOM, b"\r", b"{", b"\xed\xa0\x80"]))
            + data[at + draw(st.integers(0, 3)) :]
        )
    return data


GARBAGE = st.one_of(wrong_lines(), st.binary(max_size=40), st.text(max_size=20).map(lambda text: text.encode()))
LINES = st.lists(GARBAGE.map(lambda data: data.replace(b"\n", b"\r")), max_size=4)


def read(path: Path, data: bytes, ask: Ask | None = None) -> list[BatchRequest | LineError]:
    path.write_bytes(data)
    with open_source(path, chat_max_tokens=9, ask=ask) as source:
        return list(source.requests())


def ids(lines: list[BatchRequest | LineError]) -> list[str]:
    return [line.custom_id for line in lines if isinstance(line, BatchRequest) and line.custom_id.startswith("good")]


def long_enough() -> Any:
    end_s = time.monotonic() + FUZZ_SECONDS
    return lambda: time.monotonic() < end_s


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_no_line_harms_another(tmp_path: Path, ending: bytes) -> None:
    goes_on = long_enough()
    path = tmp_path / "in.jsonl"

    @settings(
        max_examples=50,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(LINES, st.integers(0, 2), st.booleans())
    def check(lines: list[bytes], num_boms: int, ends: bool) -> None:
        first = BOM * num_boms + GOOD[0]  # the first bytes of a file tell what it is
        found = read(path, ending.join([first, *lines, BOM * num_boms + GOOD[1]]) + (ending if ends else b""))
        assert ids(found) == ["good chat", "good text"]
        numbers = [line.line for line in found]
        assert numbers == sorted(set(numbers)), "each line once, in its place"
        blank = sum(not line.replace(BOM, b"").strip() for line in lines)
        assert len(found) >= 2 + len(lines) - blank
        assert all(str(line) and line.code for line in found if isinstance(line, LineError))
        asked = read(path, ending.join([GOOD[0], *lines, GOOD[1]]), Ask("{{ method }}"))
        assert ids(asked) == ["good chat", "good text"]
        scored = read(path, ending.join([GOOD[0], *lines, GOOD[1]]), Ask(None, SCORE, '{"continuations": ["x"]}'))
        assert [line.line for line in scored] == [line.line for line in asked]

    check()
    while goes_on():
        check()


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (GOOD[0][:40], "invalid_json_line", "Input data was truncated"),
        (GOOD[0] + GOOD[1], "invalid_json_line", "trailing characters"),
        (GOOD[0][:-1] + b"}}", "invalid_json_line", "trailing characters"),
        (GOOD[0].replace(b"Hello", b"\xff"), "invalid_json_line", "utf-8"),
        (GOOD[0].replace(b"Hello", b"\\ud83d lone"), "invalid_json_line", "surrogate"),
        (GOOD[0].replace(b"Hello", b"a\0b"), "invalid_json_line", "invalid character"),
        (GOOD[0].replace(b'"Hello"', b"NaN"), "invalid_json_line", "invalid character"),
        (GOOD[0].replace(b'"Hello"', b"-Infinity"), "invalid_json_line", "invalid"),
        (GOOD[0].replace(b'"Hello"', b"1e999"), "invalid_json_line", "out of range"),
        (GOOD[0].replace(b'"Hello"', b"[" * 10**6 + b"]" * 10**6), "invalid_json_line", "column"),
        (json.dumps(chat_line("a")).encode("utf-16"), "invalid_json_line", "column"),
        (GOOD[0], "duplicate_custom_id", '"good chat" was used on line 1'),
        (
            b'{"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": {"n": 1, "n": 1}}',
            "duplicate_key",
            "2",
        ),
        (  # as many quotation marks as without the second key
            b'{"custom_id": "\\u0022\\u0022", "method": "POST", "url": "/v1/completions", "body": {"n": 1, "n": 1}}',
            "duplicate_key",
            "2",
        ),
    ],
)
def test_what_is_wrong_with_a_line_is_said_and_the_next_one_is_read(
    tmp_path: Path, line: bytes, code: str, message: str
) -> None:
    first, wrong, last = read(tmp_path / "in.jsonl", b"\n".join([GOOD[0], line.replace(b"\n", b""), GOOD[1]]))
    assert isinstance(wrong, LineError)
    assert (wrong.code, wrong.line) == (code, 2)
    assert message in str(wrong)
    assert ids([first, last]) == ["good chat", "good text"]


def test_a_line_of_200_megabytes_is_a_line(tmp_path: Path) -> None:
    huge = json.dumps(completion_line("huge")).encode().replace(b"Hello", b"x" * (200 << 20))
    first, line, torn, last = read(tmp_path / "in.jsonl", b"\n".join([GOOD[0], huge, huge[: 100 << 20], GOOD[1]]))
    assert isinstance(line, BatchRequest)
    assert len(line.prompts[0]) == 200 << 20  # type: ignore[arg-type]
    assert isinstance(torn, LineError)
    assert len(str(torn)) < 200
    assert ids([first, last]) == ["good chat", "good text"]
