"""Nothing is replaced unasked, no file is two files, and what was written is whole."""

import fcntl
import os
import threading
from pathlib import Path

import pytest

from batchllm.jobs.files import RecordFile, check_files
from batchllm.jobs.inputs import read_lines, rereadable
from batchllm.jobs.run import errors_beside
from batchllm.models.config import model_files

BOM = b"\xef\xbb\xbf"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def opened(path: Path, *, overwrite: bool = False) -> RecordFile:
    return RecordFile("output", path, overwrite=overwrite)


def test_a_file_that_holds_something_is_refused_unless_it_may_be_replaced(path: Path) -> None:
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError, match=r"output '.*out.jsonl': exists and is not empty; --overwrite"):
        opened(path)
    with opened(path, overwrite=True) as file:
        assert path.read_bytes() == b"old"  # until it is emptied
        file.cut()
        file.write(b"new\n")
    assert path.read_bytes() == b"new\n"


def test_an_empty_file_is_taken(path: Path) -> None:
    path.touch()
    with opened(path) as file:
        file.write(b"new\n")
    assert path.read_bytes() == b"new\n"


def test_a_file_is_one_jobs_at_a_time(path: Path) -> None:
    with opened(path) as file:
        file.write(b"mine\n")
        with pytest.raises(BlockingIOError, match=r"output '.*': another job is writing it"):
            opened(path, overwrite=True)
    opened(path, overwrite=True).__exit__(None, None, None)
    assert path.read_bytes() == b"mine\n"


def test_where_there_are_no_locks_a_file_is_written_all_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*args: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with opened(path) as file:
        file.write(b"line\n")
    assert path.read_bytes() == b"line\n"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.unlink(), "was deleted while the job ran"),
        (lambda path: path.rename(path.with_name("moved")), "was deleted"),
        (lambda path: path.with_name("other").replace(path), "was replaced while the job ran"),
        (lambda path: path.write_bytes(b""), "expected the 5 bytes that were written, got 0"),
        (lambda path: path.write_bytes(b"line\nmore\n"), "got 10: something else wrote to it"),
    ],
)
def test_what_was_written_is_what_is_there_or_an_error(path: Path, harm: object, message: str) -> None:
    path.with_name("other").touch()
    file = opened(path)
    file.write(b"line\n")
    harm(path)  # type: ignore[operator]
    with pytest.raises(OSError, match=message):
        file.__exit__(None, None, None)


def test_a_failed_write_leaves_whole_records(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def fill_the_disk(file: int, data: memoryview) -> int:
        monkeypatch.setattr(os, "write", full)
        return write(file, data[:3])

    def full(file: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    file = opened(path)
    file.write(b"first\n")
    file.write(b"second\n")
    monkeypatch.setattr(os, "write", fill_the_disk)
    with pytest.raises(OSError, match=r"output .*: No space left on device; the 2 lines before are whole"), file:
        file.write(b"third\n")
    assert path.read_bytes() == b"first\nsecond\n"


def test_an_interrupted_write_leaves_whole_records(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def interrupted(file: int, data: memoryview) -> int:
        write(file, data[:3])
        raise KeyboardInterrupt

    with opened(path) as file:
        file.write(b"first\n")
        monkeypatch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            file.write(b"second\n")
    assert path.read_bytes() == b"first\n"


def test_a_device_is_written_as_it_is() -> None:
    for _ in range(2):
        with opened(Path(os.devnull)) as file:
            file.cut()
            file.write(b"line\n")
    with pytest.raises(OSError, match="output '/dev/full': No space left"), opened(Path("/dev/full")) as file:
        file.write(b"line\n")


@pytest.mark.parametrize("name", ["hard", "soft", "dangling", "sub/../in.jsonl"])
def test_no_output_is_the_input_or_another_output_by_any_name(tmp_path: Path, name: str) -> None:
    source, other = tmp_path / "in.jsonl", tmp_path / "other.jsonl"
    source.touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "hard").hardlink_to(source)
    (tmp_path / "soft").symlink_to("in.jsonl")
    (tmp_path / "dangling").symlink_to("other.jsonl")
    with pytest.raises(ValueError, match=r"plot '.*': is the (input|json) file"):
        check_files(source, {"json": other, "plot": tmp_path / name}, overwrite=True)


def test_no_output_is_a_file_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors", "answers.jsonl"):
        (tmp_path / "model" / name).touch()
    (tmp_path / "other").hardlink_to(tmp_path / "model" / "model.safetensors")
    (tmp_path / "in.jsonl").touch()

    def check(output: str) -> None:
        files = model_files(tmp_path / "model")
        check_files(tmp_path / "in.jsonl", {"output": tmp_path / output}, overwrite=True, others={"model": files})

    for output in ("model/config.json", "other"):
        with pytest.raises(ValueError, match=r"output '.*': is the model file"):
            check(output)
    check("model/answers.jsonl")


def test_outputs_are_checked_before_anything_starts(tmp_path: Path) -> None:
    source, full, ours = (tmp_path / name for name in ("in.jsonl", "full", "ours"))
    source.write_bytes(b"{}\n")
    full.write_bytes(b"old")
    with pytest.raises(FileExistsError, match=r"json '.*full': exists and is not empty"):
        check_files(source, {"errors": None, "json": full}, overwrite=False)
    check_files(source, {"errors": None, "json": full}, overwrite=True)
    assert full.read_bytes() == b"old"
    with opened(ours), pytest.raises(BlockingIOError, match=r"plot '.*ours': another job"):
        check_files(source, {"plot": ours}, overwrite=True)
    check_files(Path(os.devnull), {"output": Path(os.devnull), "errors": Path(os.devnull)}, overwrite=False)


def test_errors_stand_beside_a_file_and_beside_nothing_else(tmp_path: Path) -> None:
    assert errors_beside(tmp_path / "out.jsonl") == tmp_path / "out.errors.jsonl"
    os.mkfifo(tmp_path / "pipe")
    for output in (tmp_path / "pipe", Path(os.devnull), Path("/dev/stdout"), Path("/dev/fd/1"), Path("/dev/new")):
        assert errors_beside(output) is None


def test_errors_of_another_output_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.errors.jsonl").write_bytes(b"{}\n")
    with pytest.raises(FileExistsError, match=r"errors '.*out.errors.jsonl': .* may belong to another output"):
        errors_beside(tmp_path / "out.txt")
    (tmp_path / "out.jsonl").touch()
    assert errors_beside(tmp_path / "out.jsonl") == tmp_path / "out.errors.jsonl"


def test_byte_order_marks_of_concatenated_files_are_no_part_of_a_line(path: Path) -> None:
    path.write_bytes(BOM + b"{}\n" + BOM + BOM + b"{}\r\n" + BOM)
    assert list(read_lines(path, str(path))) == [b"{}\n", b"{}\r\n", b""]


LINE = '{"custom_id": "a"}\n'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xfd7zXZ....", "compressed .*xz -dc"),
        (b"PAR1....", "a Parquet file .*--template"),
        (LINE.encode("utf-16"), "UTF-16"),
        (LINE.encode("utf-16-le"), "UTF-16"),
        (LINE.encode("utf-16-be"), "UTF-16"),
        (LINE.encode("utf-32"), "UTF-16"),
        (b'[{"custom_id": "a"}]\n', r"a JSON array .*jq -c '\.\[\]'"),
        (BOM + b'\n[\n  {"custom_id": "a"}\n]\n', "a JSON array"),
        (b'[ {"custom_id": "a"},\n {}]', "a JSON array"),
    ],
)
def test_a_file_of_another_format_is_recognised(path: Path, data: bytes, message: str) -> None:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"input '.*out.jsonl': expected lines of JSON in UTF-8, got .*{message}"):
        list(read_lines(path, str(path)))


def test_a_first_line_that_is_only_wrong_is_a_line(path: Path) -> None:
    for data in (b"[1, 2]\n", b"{\n", b'"text"\n'):
        path.write_bytes(data)
        assert list(read_lines(path, str(path))) == [data]


def test_a_pipe_is_kept_because_it_is_read_twice(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_files(pipe, {"output": tmp_path / "out"}, overwrite=False)  # waits for no writer
    writer = threading.Thread(target=pipe.write_bytes, args=(b"{}\n" * 50_000,))
    writer.start()
    with rereadable(pipe) as path:
        once, again = list(read_lines(path, "pipe")), list(read_lines(path, "pipe"))
    writer.join()
    assert len(once) == 50_000
    assert once == again
    assert not path.exists()
