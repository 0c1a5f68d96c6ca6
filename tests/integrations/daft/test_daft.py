"""What Daft passes to a function of a column, and the example that makes a whole column one job."""

import inspect
import runpy
import sys
from pathlib import Path

import daft
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from daft.ai.protocols import Prompter

from tests.engine import tiny

ROOT = Path(__file__).resolve().parents[3]
NUM_FILES, ROWS = 3, 40


@daft.cls(max_concurrency=1)
class Sizes:
    """Of the batches that its functions are called with."""

    @daft.method.batch(return_dtype=daft.DataType.int64())
    def by_itself(self, column: daft.Series) -> list[int]:
        return [len(column)] * len(column)

    @daft.method.batch(return_dtype=daft.DataType.int64(), batch_size=1 << 30)
    def as_the_example(self, column: daft.Series) -> list[int]:
        return [len(column)] * len(column)


@pytest.fixture
def files(tmp_path: Path) -> str:
    for file in range(NUM_FILES):
        pq.write_table(pa.table({"text": [f"{row} {file}" for row in range(ROWS)]}), tmp_path / f"{file}.parquet")
    return str(tmp_path / "*.parquet")


@pytest.fixture(autouse=True)
def _workers_import_this_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def sizes(column: daft.DataFrame) -> set[int]:
    return set(column.to_pydict()["size"])


def test_a_prompter_gets_the_messages_of_one_row():
    assert list(inspect.signature(Prompter.prompt).parameters) == ["self", "messages"]
    assert inspect.iscoroutinefunction(Prompter.prompt)


def test_a_batch_is_a_file_of_the_column_where_nothing_is_said(files):
    df = daft.read_parquet(files)
    assert sizes(df.select(Sizes().by_itself(df["text"]).alias("size"))) == {ROWS}


def test_a_batch_is_cut_at_131072_rows_where_no_size_is_said():
    df = daft.from_pydict({"text": ["x"] * 200_000})
    assert max(sizes(df.select(Sizes().by_itself(df["text"]).alias("size")))) == 131_072
    assert sizes(df.select(Sizes().as_the_example(df["text"]).alias("size"))) == {200_000}


def test_sorted_and_with_room_for_all_of_it_a_batch_is_the_column(files):
    df = daft.read_parquet(files).sort("text")
    assert sizes(df.select(Sizes().as_the_example(df["text"]).alias("size"))) == {NUM_FILES * ROWS}


def test_the_example_computes_what_its_rows_share_once(tmp_path, monkeypatch, capsys):
    tiny.save(tiny.FAMILIES["llama"].model(), tmp_path)
    tiny.save_tokenizer(tmp_path)
    example = ROOT / "examples" / "daft_column.py"
    monkeypatch.setattr(sys, "argv", [example.name, str(tmp_path)])
    runpy.run_path(str(example), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.count("(0 tokens of its prompt were computed for another)") == 1
    assert printed.count("tokens of its prompt were computed for another)") == 3
