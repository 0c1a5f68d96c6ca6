"""The page about a job: complete, self-contained, and harmless whatever prompts and answers say."""

import base64
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchllm.engine.recorder import TimelineFigures
from batchllm.jobs.figures import JobFigures, LineGroup
from batchllm.jobs.finished import write_parquet
from batchllm.jobs.line import LineError
from batchllm.jobs.manifest import Manifest, write_manifest
from batchllm.jobs.openai_records import error_record
from batchllm.jobs.read_answers import Answers
from batchllm.outputs import JobProgress
from batchllm.reports.browser_data import CHUNK_BYTES, MAX_TEXT_CHARS
from batchllm.reports.html import MAX_FAILURES, ReportFiles, report_page, sha256, write_report
from batchllm.sharing import LevelFigures
from tests.jobs.batch_lines import chat_line, completion_line, write_lines

JOB = "0123456789abcdef"
HOSTILE = "</script><script>alert(1)</script><img src=//evil.example onerror=alert(2)>\"'&]]>\u202e\x1b[2J"
DOCUMENT = "A document about many things, " * 9


class Page(HTMLParser):
    """Tags with their attributes, and the text of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, dict[str, str | None], str]] = []  # tag, attributes, content
        self.text = ""
        self._stack: list[str] = []
        self.feed(html)
        self.close()
        assert self._stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.raw.append((tag, dict(attrs), ""))
        if tag not in ("meta", "link", "input", "line", "rect", "path"):
            self._stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._stack and self._stack[-1] in ("script", "style"):
            tag, attributes, content = self.raw.pop()
            self.raw.append((tag, attributes, content + data))
        else:
            self.text += data

    def script(self, name: str) -> str:
        return next(content for tag, attributes, content in self.raw if attributes.get("id") == name)

    @property
    def rows(self) -> list[Any]:
        sizes, begins = inflate(self.script("index"))
        chunks = [inflate(self.script(f"chunk-{i}")) for i in range(len(begins))]
        assert [sum(map(len, chunks[:i])) for i in range(len(chunks))] == begins
        rows = [row for chunk in chunks for row in chunk]
        assert len(sizes) == len(rows)
        assert [size > 1 for size in sizes] == [len(row) == 2 for row in rows]
        return rows


def inflate(text: str) -> Any:
    return json.loads(zlib.decompress(base64.b64decode(text, validate=True)))


def answer(custom_id: str, *texts: str, model: str = "m") -> dict[str, Any]:
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for i, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 70, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 60}}
    body = {"model": model, "choices": choices, "usage": usage}
    return {"id": "x", "custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None}


def figures(input: Path | None, *, model: str = "m", line: int = 1, num_points: int = 3) -> JobFigures:
    return JobFigures(
        model=model,
        input=str(input) if input else None,
        progress=JobProgress(
            *(3, 3, 210, 120, 15, 0, 4.5), steps=num_points, kv_cache_tokens=100, peak_kv_tokens=90, preemptions=1
        ),
        seconds={"forward": 4.0, "load": 1.0, "total": 5.0},
        timeline=TimelineFigures(
            steps=[1] * num_points,
            seconds=[1.5] * num_points,
            decode_tokens=[3] * num_points,
            prefill_tokens=[20] * num_points,
            kv_tokens=[90] * num_points,
        ),
        levels=[LevelFigures(1, 1, 3.0, 3, 60, 120)],
        groups=[LineGroup(line, 0, 3, 60, 2.5)],
    )


@pytest.fixture
def job(tmp_path: Path) -> ReportFiles:
    """Three questions on one document, of which one failed, and a line that could not be read."""
    source = write_lines(
        tmp_path / "in.jsonl", [chat_line(f"q{i}", f"{DOCUMENT}Question {i}?") for i in range(3)] + [b"{"]
    )
    write_lines(tmp_path / "out.jsonl", [answer("q1", "One."), answer("q0", "Zero.", "Null.")])
    failed = LineError("invalid_prompt", "body.messages", "too long").at(3, "q2")
    write_lines(tmp_path / "out.errors.jsonl", [error_record(failed, JOB).strip()])
    (tmp_path / "out.figures.json").write_bytes(msgspec.json.encode(figures(source)))
    return ReportFiles(
        *(tmp_path / name for name in ("out.jsonl", "out.html")),
        input=None,
        errors=tmp_path / "out.errors.jsonl",
        figures=tmp_path / "out.figures.json",
    )


def with_(files: ReportFiles, **changes: Any) -> ReportFiles:
    return ReportFiles(**files.__dict__ | changes)


def test_the_page_has_every_part_and_every_answer_below_its_prefix(job: ReportFiles) -> None:
    page = Page(report_page(job))
    for words in ("lines answered", "57.1%", "peak KV tokens", "prefill, tokens per step", "forward", "invalid_prompt"):
        assert words in page.text, words
    prefix, *rows = page.rows
    assert prefix == [f"user:\n{DOCUMENT}Question ", 3]
    assert rows == [
        ["0?", "q0", 1, [["Zero.", "stop"], ["Null.", "stop"]], [70, 60, 5], None],
        ["1?", "q1", 2, [["One.", "stop"]], [70, 60, 5], None],
        ["2?", "q2", 3, [], None, "body.messages: too long"],
    ]
    assert ("a", {"href": "#row-0"}) in page.tags, "the slowest group is that prefix"


def test_what_prompts_and_answers_say_is_text(tmp_path: Path) -> None:
    source = write_lines(
        tmp_path / "in.jsonl", [completion_line(HOSTILE + str(i), HOSTILE * 3 + str(i)) for i in range(2)]
    )
    name = "out</title><script>.jsonl".replace("/", "\\")
    out = write_lines(tmp_path / name, [answer(HOSTILE + "0", HOSTILE, model=HOSTILE)])
    failed = LineError(HOSTILE, None, HOSTILE).at(2, HOSTILE + "1")
    errors = write_lines(tmp_path / "errors", [error_record(failed, JOB).strip(), HOSTILE.encode()])
    path = tmp_path / "figures"
    path.write_bytes(msgspec.json.encode(figures(source, model=HOSTILE)))
    for figures_path, input_path in ((path, None), (None, source), (path, tmp_path / HOSTILE.replace("/", "_"))):
        html = report_page(ReportFiles(out, tmp_path / "page", input_path, errors, figures_path))
        page = Page(html)
        assert "alert(1)" in page.text
        code = [content for tag, attributes, content in page.raw if tag == "script" and "type" not in attributes]
        styles = [content for tag, _, content in page.raw if tag == "style"]
        policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
        assert policy == (
            f"default-src 'none'; style-src {sha256(styles[0])}; script-src {sha256(code[0])}; base-uri 'none'; "
            "form-action 'none'"
        )
        assert (len(code), len(styles)) == (1, 1)
        assert not {tag for tag, _ in page.tags} & {"img", "iframe", "object", "base", "link", "audio", "video"}
        for tag, attributes in page.tags:
            assert not [name for name in attributes if name.startswith("on") or name in ("src", "style", "srcset")], tag
            assert (attributes.get("href") or "#").startswith("#")
        assert any(row[1] == HOSTILE + "0" for row in page.rows)


def test_the_page_asks_no_network(job: ReportFiles) -> None:
    html = report_page(job)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|fetch\(|XMLHttpRequest|WebSocket|innerHTML|eval\(", html)


def test_without_figures_the_page_says_what_is_missing(job: ReportFiles) -> None:
    assert job.figures
    source = job.answers.with_name("in.jsonl")
    job.figures.unlink()
    page = Page(report_page(with_(job, input=source)))
    assert "out.figures.json is not there" in page.text
    assert "prefill, tokens per step" not in page.text
    assert len(page.rows) == 4


def test_without_input_answers_stand_alone(job: ReportFiles) -> None:
    assert job.figures
    job.answers.with_name("in.jsonl").unlink()
    page = Page(report_page(job))
    assert "in.jsonl is not there: answers are shown without their prompts" in page.text
    assert page.rows == [
        ["", "q1", None, [["One.", "stop"]], [70, 60, 5], None],
        ["", "q0", None, [["Zero.", "stop"], ["Null.", "stop"]], [70, 60, 5], None],
    ]


def test_without_an_errors_file_what_the_input_says_is_told(job: ReportFiles) -> None:
    assert job.errors
    job.errors.unlink()
    page = Page(report_page(job))
    assert "invalid_json_line" in page.text
    assert page.rows[-1][-1] == "no answer in the output file"


def test_a_stopped_job_and_answers_of_another_job_are_told(job: ReportFiles) -> None:
    assert job.figures
    stopped = figures(job.answers.with_name("in.jsonl"))
    stopped.progress.__dict__["finished_requests"] = 2
    job.figures.write_bytes(msgspec.json.encode(stopped))
    write_lines(job.answers, [answer("q1", "One."), answer("stranger", "?")])
    page = Page(report_page(job))
    assert "The job was stopped: 2 of 3 requests were finished." in page.text
    assert "1 answers belong to no line" in page.text


@pytest.mark.parametrize("form", ["rows.csv", "rows.parquet", "rows"])
def test_prompts_of_a_table_are_made_as_the_job_made_them(job: ReportFiles, tmp_path: Path, form: str) -> None:
    rows = [{"text": f"{DOCUMENT}Question {i}?", "n": 2} for i in range(4)]
    source = tmp_path / form
    if form == "rows.csv":
        source.write_text("text,n\n" + "".join(f'"{row["text"]}",2\n' for row in rows))
    elif form == "rows.parquet":
        pq.write_table(pa.Table.from_pylist(rows), source)
    else:
        source.mkdir()
        pq.write_table(pa.Table.from_pylist(rows), source / "part.parquet")
    write_lines(job.answers, [answer("row-2", "One."), answer("row-1", "Zero.")])
    asked = {"template": "Read. {{ text }} {{ n }}", "url": "/v1/completions", "body": "{}", "limit": 3}
    write_manifest(job.answers, Manifest(JOB, asked, 3, 0))
    shown = [row for row in Page(report_page(with_(job, input=source))).rows if len(row) > 2]
    assert [(row[1], row[2], row[3]) for row in shown] == [
        ("row-1", 1, [["Zero.", "stop"]]),
        ("row-2", 2, [["One.", "stop"]]),
        ("row-3", 3, []),
    ]
    [prefix] = [row for row in Page(report_page(with_(job, input=source))).rows if len(row) == 2]
    assert prefix[0].startswith("Read. ")


def test_continuations_that_were_scored_stand_below_their_prompt(job: ReportFiles, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [{"prompt": DOCUMENT, "continuations": [" yes", " no"]}])
    scores = [{"tokens": [" yes"], "probability": 0.75}, {"tokens": [" n", "o"], "probability": 0.25}]
    record = {"id": "x", "custom_id": "row-1", "response": {"body": {"scores": scores}}, "error": None}
    write_lines(job.answers, [record])
    write_manifest(job.answers, Manifest(JOB, {"template": None, "url": "/v1/score", "body": "{}"}, 1, 0))
    rows = Page(report_page(with_(job, input=source))).rows
    assert rows[0][0] == DOCUMENT
    assert [row[3] for row in rows[1:]] == [[[" yes", "75.0%"]], [[" no", "25.0%"]]]


def test_answers_may_be_a_table(job: ReportFiles, tmp_path: Path) -> None:
    records = [answer("q1", "One."), answer("q0", "Zero.", "Null.")]
    calls = [{"function": {"name": "f", "arguments": "{}"}, "id": "c", "type": "function"}]
    records[0]["response"]["body"]["choices"][0]["message"] = {"content": None, "tool_calls": calls}
    scores = [{"index": i, "logprob": -1.0, "probability": 0.5, "is_greedy": False} for i in range(2)]
    body = {"scores": scores, "model": "m", "usage": records[0]["response"]["body"]["usage"]}
    records.append({"custom_id": "scored", "response": {"body": body}})
    table = tmp_path / "out.parquet"
    with table.open("wb") as file:
        write_parquet(file, (json.dumps(record | {"id": f"{i:016x}"}).encode() for i, record in enumerate(records)))
    answers = Answers()
    answers.read(table)
    assert [(a.custom_id, [(c.text, c.finish_reason) for c in a.completions]) for a in answers.answers] == [
        ("q1", [("f({})", "stop")]),
        ("q0", [("Zero.", "stop"), ("Null.", "stop")]),
        ("scored", [("continuation 0", "50.0%"), ("continuation 1", "50.0%")]),
    ]
    assert {(a.prompt_tokens, a.cached_tokens) for a in answers.answers} == {(70, 60)}
    assert "Null." in str(Page(report_page(with_(job, answers=table))).rows)
    pq.write_table(pa.table({"x": [1]}), table)
    with pytest.raises(ValueError, match=r"answers '.*out.parquet': Object missing required field `custom_id`"):
        answers.read(table)


def test_a_manifest_that_is_none_is_named(job: ReportFiles) -> None:
    write_manifest(job.answers, Manifest(JOB, {"url": "/v1/embeddings"}, 1, 0))
    with pytest.raises(ValueError, match="manifest: fingerprint: '/v1/embeddings'"):
        report_page(job)


def test_prompts_of_one_line_have_their_own_answers(job: ReportFiles) -> None:
    write_lines(job.answers.with_name("in.jsonl"), [completion_line("a", [DOCUMENT + "x", DOCUMENT + "y"], n=2)])
    write_lines(job.answers, [answer("a", "x0", "x1", "y0", "y1")])
    rows = Page(report_page(job)).rows
    assert [[text for text, _ in row[3]] for row in rows[1:]] == [["x0", "x1"], ["y0", "y1"]]


def test_prompts_of_token_ids_are_numbers(job: ReportFiles) -> None:
    write_lines(job.answers.with_name("in.jsonl"), [completion_line("a", [1, 22, 333])])
    assert Page(report_page(job)).rows[0][0] == "1 22 333"


def test_a_line_that_is_no_record_is_an_error_and_ends_nothing(job: ReportFiles) -> None:
    records: list[Any] = [b"torn{", b"[]", b'{"custom_id": 5}', b"\xff", answer("q0", "Zero.")]
    write_lines(job.answers, records)
    page = Page(report_page(job))
    assert page.text.count("unreadable_record") == 1
    assert "out.jsonl, line 3" in page.text
    assert [row[1] for row in page.rows if len(row) > 2 and row[3]] == ["q0"]


def test_a_large_job_makes_a_page_of_bounded_parts(job: ReportFiles) -> None:
    assert job.figures
    assert job.errors
    count = 4000
    lines = [chat_line(f"q{i}", f"{DOCUMENT}{i % 40:03} {DOCUMENT}{i}") for i in range(count)]
    write_lines(job.answers.with_name("in.jsonl"), lines)
    write_lines(job.answers, [answer(f"q{i}", f"Answer {i} {'word ' * 50}") for i in range(count)])
    error = error_record(LineError("bad", None, "no").at(1, "x"), JOB).strip()
    write_lines(job.errors, [error] * (2 * MAX_FAILURES))
    html = report_page(job)
    page = Page(html)
    assert len(page.rows) == count + 40 + 1
    chunks = [content for _, attributes, content in page.raw if (attributes.get("id") or "").startswith("chunk-")]
    assert len(chunks) > 4
    for chunk in chunks:
        assert len(zlib.decompress(base64.b64decode(chunk))) < 2 * CHUNK_BYTES
    assert len(html) < sum(path.stat().st_size for path in (job.answers, job.answers.with_name("in.jsonl"))) / 4
    assert f"{MAX_FAILURES} more are in the errors file" in page.text
    assert sum(tag == "li" for tag, _ in page.tags) < 10, "no answer is drawn before it is looked at"


def test_a_very_long_text_loses_its_middle(job: ReportFiles) -> None:
    write_lines(job.answers, [answer("q0", "a" * MAX_TEXT_CHARS), answer("q1", "b" * MAX_TEXT_CHARS + "end")])
    texts = [row[3][0][0] for row in Page(report_page(job)).rows if len(row) > 2 and row[3]]
    assert texts[0] == "a" * MAX_TEXT_CHARS
    assert "[… 3 characters left out …]" in texts[1]
    assert texts[1].endswith("end")
    assert len(texts[1]) < MAX_TEXT_CHARS + 100


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"figures '.*out.figures.json': Input data was truncated"),
        (b'{"model": 5}', r"figures .* Expected `str`, got `int` - at `\$.model`"),
    ],
)
def test_figures_that_are_none_are_named(job: ReportFiles, content: bytes, message: str) -> None:
    assert job.figures
    job.figures.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        report_page(job)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [("seconds", [1.5], "timeline: expected lists of one length"), ("steps", [1, 0, 1], "timeline.steps: .* got 0")],
)
def test_a_timeline_that_is_none_is_named(job: ReportFiles, column: str, values: list[float], message: str) -> None:
    assert job.figures
    raw = json.loads(job.figures.read_bytes())
    raw["timeline"][column] = values
    job.figures.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=rf"out.figures.json': {message}"):
        report_page(job)


def test_a_report_replaces_nothing_unasked_and_no_file_of_the_job(job: ReportFiles) -> None:
    job.report.write_text("old")
    with pytest.raises(FileExistsError, match=r"report .*out.html': exists and is not empty; --overwrite"):
        write_report(job)
    write_report(with_(job, overwrite=True))
    assert job.report.read_text().startswith("<!doctype html>")
    for path in (job.answers, job.figures, job.errors, job.answers.with_name("in.jsonl")):
        assert path
        held = path.read_bytes()
        with pytest.raises(ValueError, match=r"report .*: is the input file"):
            write_report(with_(job, report=path, input=job.answers.with_name("in.jsonl"), overwrite=True))
        assert path.read_bytes() == held


def test_missing_files_are_named(job: ReportFiles, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"input '.*none': no such file"):
        write_report(with_(job, answers=tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"input '.*none': no such file"):
        write_report(with_(job, input=tmp_path / "none"))
