"""Tables as sources, and as sinks; compressed, remote, in order; and the call that does it all."""

import gzip
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import batchllm.llm
from batchllm import run_job
from batchllm.jobs.line import CHAT, COMPLETION, BatchRequest, LineError
from batchllm.jobs.manifest import read_manifest
from batchllm.jobs.run import JobInterrupted
from batchllm.jobs.sources import Ask, open_source
from batchllm.options import DEFAULTS
from tests.jobs.batch_lines import completion_line, read_records, write_lines
from tests.jobs.fake_llm import FakeLLM

ROWS = [{"text": "one", "label": 1}, {"text": 'a "b"\nc', "label": 2}, {"text": "東京", "label": 3}]
ASK = Ask("Summarise: {{ text }}")


@pytest.fixture(autouse=True)
def fake_llm(monkeypatch: pytest.MonkeyPatch) -> list[FakeLLM]:
    made: list[FakeLLM] = []

    def make(*args: str, **options: object) -> FakeLLM:
        made.append(FakeLLM(*args, **options))
        return made[-1]

    monkeypatch.setattr(batchllm.llm, "LLM", make)
    return made


def requests(path: Path | str, ask: Ask | None = ASK, **options: Any) -> list[BatchRequest | LineError]:
    with open_source(path, chat_max_tokens=9, ask=ask, **options) as source:
        return list(source.requests())


def texts(lines: list[BatchRequest | LineError]) -> list[str]:
    found = [line for line in lines if isinstance(line, BatchRequest)]
    assert found == lines
    return [request.prompts[0].messages[0]["content"] for request in found]  # type: ignore[union-attr]


def write_json(path: Path) -> Path:
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def write_csv(path: Path) -> Path:
    path.write_bytes('\ufefftext,label\r\none,1\r\n"a ""b""\nc",2\r\n\r\n東京,3'.encode())
    return path


def write_parquet(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)
    return path


def write_dataset(path: Path) -> Path:
    """As datasets' save_to_disk does, with a file of its cache."""
    path.mkdir()
    for name, rows in (("data-00000-of-00002.arrow", ROWS[:2]), ("data-00001-of-00002.arrow", ROWS[2:])):
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    (path / "cache-1.arrow").write_bytes((path / name).read_bytes())
    files = [{"filename": f"data-0000{i}-of-00002.arrow"} for i in range(2)]
    (path / "state.json").write_text(json.dumps({"_data_files": files}))
    return path


def write_parquet_directory(path: Path) -> Path:
    (path / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), path / "data" / "train-0.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS[1:]), path / "data" / "train-1.parquet")
    return path


FORMATS: dict[str, Callable[[Path], Path]] = {
    "rows.jsonl": write_json,
    "rows.csv": write_csv,
    "rows.parquet": write_parquet,
    "dataset": write_dataset,
    "parquets": write_parquet_directory,
}


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_every_format_become_the_same_requests(tmp_path: Path, name: str) -> None:
    lines = requests(FORMATS[name](tmp_path / name))
    assert texts(lines) == [f"Summarise: {row['text']}" for row in ROWS]
    assert [line.custom_id for line in lines] == ["row-1", "row-2", "row-3"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_compressed_files_are_read_as_what_they_hold(
    tmp_path: Path, name: str, compress: Callable[[bytes], bytes]
) -> None:
    data = FORMATS[name](tmp_path / name).read_bytes()
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(compress(data) + compress(b""))
    assert len(texts(requests(packed))) == 3
    packed.write_bytes(compress(data * 1000)[:-9])
    with pytest.raises(ValueError, match=r"input '.*gz': compressed, and torn: "):
        requests(packed)


def test_remote_files_are_read(tmp_path: Path) -> None:
    with fsspec.open("memory://bucket/rows.csv", "wb") as file:
        file.write(write_csv(tmp_path / "rows.csv").read_bytes())
    assert len(texts(requests("memory://bucket/rows.csv"))) == 3
    with pytest.raises(FileNotFoundError):
        requests("memory://bucket/none.csv")


@pytest.mark.parametrize("module", ["pyarrow", "zstandard", "fsspec"])
def test_a_library_that_is_missing_is_named_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    paths = {"pyarrow": write_parquet(tmp_path / "rows.parquet"), "fsspec": "s3://bucket/rows.csv"}
    paths["zstandard"] = tmp_path / "rows.zst"
    (tmp_path / "rows.zst").write_bytes(zstandard.compress(b"{}"))
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ValueError, match=rf"which needs {module}: pip install 'batchllm-ext\[data\]'"):
        requests(paths[module])


def test_a_row_has_the_body_and_its_own_custom_id(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [{"custom_id": "a", "x": 1}, {"custom_id": 7, "x": 2}])
    first, second = requests(path, Ask("{{ x + 1 }}", COMPLETION, body='{"temperature": 0, "n": 2}'))
    assert isinstance(first, BatchRequest)
    assert (first.custom_id, second.custom_id, first.kind, first.prompts) == ("a", "7", COMPLETION, ["2"])
    assert (first.params.temperature, first.params.n, first.params.max_tokens) == (0, 2, 9)
    [chat, _] = requests(path, Ask("{{ x }}", body='{"max_tokens": 3}'))
    assert isinstance(chat, BatchRequest)
    assert (chat.kind, chat.params.max_tokens) == (CHAT, 3)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (Ask("{{ text"), r"template: line 1: unexpected end of template"),
        (Ask("x", body="[]"), r"body: expected a JSON object: Expected `object`, got `array`"),
        (Ask("x", body="{"), r"body: expected a JSON object: "),
    ],
)
def test_what_is_wrong_with_what_is_asked_is_told_before_anything_runs(tmp_path: Path, ask: Ask, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        requests(write_json(tmp_path / "rows.jsonl"), ask)


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def test_a_template_has_bounds_of_time_memory_and_length(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [b'{"n": 1}', b'{"n": 0}'])
    [slow, good] = requests(path, Ask("{% if n %}" + ENDLESS + "{% endif %}yes"))
    assert str(slow) == "template: the template did not end within 5 s"
    assert isinstance(good, BatchRequest)
    [long, _] = requests(path, Ask("{{ 'x' * (99999999 * n) }}"))
    assert "it writes more than 1,048," in str(long)
    [large, _] = requests(path, Ask("{{ 'x' * 99999999999 }}"))
    assert str(large) == "template: MemoryError: "


def test_what_json_has_not_is_text_to_a_template(tmp_path: Path) -> None:
    pq.write_table(pa.table({"day": [date(2026, 2, 3)]}), tmp_path / "in.parquet")
    [request] = requests(tmp_path / "in.parquet", Ask("on {{ day }}", COMPLETION))
    assert isinstance(request, BatchRequest)
    assert request.prompts == ["on 2026-02-03"]


def test_what_is_wrong_with_a_row_is_that_rows_error(tmp_path: Path) -> None:
    rows = [b"{}", b"{", b"[1]", b'{"text": "\xff"}', b'{"text": "good"}', b'{"text": {"a": NaN}}']
    lines = requests(write_lines(tmp_path / "in.jsonl", rows), Ask("{{ text.upper() }}"))
    assert [line.line for line in lines] == [1, 2, 3, 4, 5, 6]
    reasons = [str(line) for line in lines if isinstance(line, LineError)]
    assert reasons[:3] == [
        *("template: UndefinedError: 'text' is undefined", "Input data was truncated", "expected an object, got [1]")
    ]
    assert "utf-8" in reasons[3]
    assert reasons[4].startswith("JSON is malformed")
    assert isinstance(lines[4], BatchRequest)
    for line in requests(write_lines(tmp_path / "empty.jsonl", [b"{}"]), Ask("a{{ text }}b")):
        assert str(line) == "template: UndefinedError: 'text' is undefined"
    escapes = requests(write_json(tmp_path / "rows.jsonl"), Ask("{{ text.__class__.__mro__ }}"))
    assert all(isinstance(line, LineError) and "unsafe" in str(line) for line in escapes), "the sandbox holds"


def test_csv_rows_that_do_not_fit_are_errors_and_harm_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"text,label\na\nb,1,2\n\xff,3\nlast,4\n")
    lines = requests(path)
    assert [str(line) for line in lines[:3]] == [
        "expected 2 cells, as the header has, got 1",
        "expected 2 cells, as the header has, got 3",
        "not valid UTF-8: surrogates not allowed",
    ]
    assert texts(lines[3:]) == ["Summarise: last"]
    path.write_bytes(b'text\nfine\n"open')
    with pytest.raises(ValueError, match=r"input '.*rows.csv': after row 1, line 3: unexpected end of data"):
        requests(path)
    path.write_bytes(b"text,text\n")
    with pytest.raises(ValueError, match="a column stands twice"):
        requests(path)


def test_directories_that_are_no_dataset_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a directory with .parquet or .arrow files"):
        requests(tmp_path)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ValueError, match=r"name one of its splits, .*/train, .*/test"):
        requests(tmp_path)
    write_parquet(tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"input '.*torn.parquet': "):
        requests(tmp_path / "torn.parquet")


def test_a_part_of_the_lines_is_the_first_or_a_sample(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [b"", *(completion_line(str(i)) for i in range(100))])
    assert [line.line for line in requests(path, None, limit=3)] == [2, 3, 4]
    samples = [[line.line for line in requests(path, None, sample=10, seed=seed)] for seed in (0, 0, 1)]
    assert samples[0] == samples[1] == sorted(samples[0])
    assert len(set(samples[0])) == 10
    assert samples[0] != samples[2]
    assert len(requests(path, None, sample=1000)) == 100


def job_lines(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", [completion_line(f"id {i}", "x" * i, n=1 + i % 2) for i in range(12)])


def test_an_ordered_output_has_the_order_of_the_lines_once_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    summary = run_job(job_lines(tmp_path), out, "m", ordered=True)
    assert (summary.num_answered, summary.num_failed) == (11, 1)  # the first prompt is empty
    assert [record["custom_id"] for record in read_records(out)] == [f"id {i}" for i in range(1, 12)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("in.jsonl", "out.errors.jsonl", "out.jsonl", "out.jsonl.manifest.json")
    ]


def test_a_table_of_answers_is_read_by_anyone(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    run_job(job_lines(tmp_path), out, "m", ordered=True)
    rows = pq.read_table(out).to_pylist()
    assert [row["custom_id"] for row in rows] == [f"id {i}" for i in range(1, 12)]
    assert rows[0] == {
        "line": 2,
        "custom_id": "id 1",
        "model": "m",
        "text": "1 tokens, sample 0",
        "finish_reason": "stop",
        "choices": [
            {"index": i, "text": f"1 tokens, sample {i}", "finish_reason": "stop", "stop_reason": None}
            for i in range(2)
        ],
        "choice": None,
        "scores": None,
        "perplexity": None,
        "prompt_tokens": 1,
        "completion_tokens": 4,
        "cached_tokens": 0,
    }


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl"])
def test_a_job_with_a_journal_is_resumed_as_any_other(tmp_path: Path, name: str, fake_llm: list[FakeLLM]) -> None:
    source, out = job_lines(tmp_path), tmp_path / name
    journal = out.with_name(f"{name}.journal.jsonl")

    class Stopping(FakeLLM):
        directory = Path("m")

        def generate_as_completed(self, *args: Any, **options: Any) -> Any:
            results = super().generate_as_completed(*args, **options)
            yield from (next(results) for _ in range(5))
            raise KeyboardInterrupt

    options: dict[str, Any] = {"ordered": True, "resume": True}
    stopping: Any = Stopping()
    stopping.options = DEFAULTS
    with pytest.raises(JobInterrupted):
        run_job(source, out, stopping, **options)
    assert not out.exists()
    assert len(read_records(journal)) == 5
    assert run_job(source, out, "m", **options).num_answered == 11
    assert len(fake_llm) == 1
    assert not journal.exists()
    before = out.read_bytes()
    assert run_job(source, out, "m", **options).num_earlier == 12
    assert len(fake_llm) == 1
    assert out.read_bytes() == before
    with pytest.raises(ValueError, match="lines with errors are not tried again"):
        run_job(source, out, "m", retry_errors=True, **options)
    with pytest.raises(FileExistsError, match="--resume continues its job"):
        run_job(source, out, "m", ordered=True)
    run_job(source, out, "m", ordered=True, overwrite=True)
    assert not journal.exists()


def test_what_is_asked_is_part_of_the_job(tmp_path: Path) -> None:
    source, out = write_json(tmp_path / "rows.jsonl"), tmp_path / "out.jsonl"
    run_job(source, out, "m", template="{{ text }}", resume=True)
    manifest = read_manifest(out)
    assert manifest
    assert manifest.fingerprint["template"] == "{{ text }}"
    message = r"template is {{ text }} there and {{ label }} here; limit is nothing there and 1"
    with pytest.raises(ValueError, match=message):
        run_job(source, out, "m", template="{{ label }}", limit=1, resume=True)


def test_a_pipe_is_neither_a_table_nor_ordered(tmp_path: Path) -> None:
    for options in ({"ordered": True}, {"resume": True}):
        with pytest.raises(ValueError, match=r"only (a file can be|files are)"):
            run_job(job_lines(tmp_path), "/dev/null", "m", **options)
