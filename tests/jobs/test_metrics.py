"""A running job's figures for Prometheus: the text format, read strictly, and the file, whole at any time."""

import os
import re
from pathlib import Path

import pytest

from batchllm.outputs import JobProgress
from batchllm.reports.metrics import SECONDS_BETWEEN_WRITES, keep_metrics, metrics_text

SAMPLE = re.compile(r'([a-z][a-z0-9_]*)(?:\{([a-z_]+)="([a-z_]+)"\})? ([0-9]+(?:\.[0-9]+)?(?:e[+-][0-9]+)?)')
Samples = dict[tuple[str, str], float]  # (metric, value of its label): number


def parse(text: bytes) -> tuple[dict[str, str], Samples]:
    """The kinds of the metrics and their samples; every metric has its HELP, then its TYPE, then its samples."""
    assert text.endswith(b"\n")
    kinds: dict[str, str] = {}
    samples: Samples = {}
    current = ""
    lines = iter(text.decode("ascii").splitlines())
    for line in lines:
        if line.startswith("#"):
            _, helps, current, what = line.split(" ", 3)
            assert (helps, bool(what)) == ("HELP", True)
            assert current not in kinds
            _, types, name, kinds[current] = next(lines).split(" ")
            assert (types, name) == ("TYPE", current)
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample, line
        assert sample[1] == current
        assert (current, sample[3] or "") not in samples
        samples[current, sample[3] or ""] = float(sample[4])
    return kinds, samples


shown: list[JobProgress] = []


def progress(elapsed_s: float = 3.0, finished: int = 1) -> JobProgress:
    return JobProgress(
        num_requests=6,
        finished_requests=finished,
        scheduled_prompt_tokens=100,
        saved_prompt_tokens=60,
        output_tokens=11,
        remaining_output_tokens=21,
        elapsed_s=elapsed_s,
        running_requests=2,
        waiting_requests=3,
        computed_prompt_tokens=45,
        remaining_prompt_tokens=31,
        recomputed_tokens=5,
        kv_tokens=64,
        kv_cache_tokens=256,
        steps=7,
        preemptions=1,
        seconds={"forward": 2.5, "plan": 1e-7},
    )


def test_every_figure_is_there_by_name_and_label() -> None:
    kinds, samples = parse(metrics_text(progress()))
    assert samples == {
        ("batchllm_requests", "waiting"): 3,
        ("batchllm_requests", "running"): 2,
        ("batchllm_requests", "finished"): 1,
        ("batchllm_tokens_total", "prompt_computed"): 45,
        ("batchllm_tokens_total", "prompt_saved"): 60,
        ("batchllm_tokens_total", "recomputed"): 5,
        ("batchllm_tokens_total", "output"): 11,
        ("batchllm_remaining_tokens", "prompt"): 31,
        ("batchllm_remaining_tokens", "output"): 21,
        ("batchllm_kv_tokens", "used"): 64,
        ("batchllm_kv_tokens", "free"): 192,
        ("batchllm_preemptions_total", ""): 1,
        ("batchllm_steps_total", ""): 7,
        ("batchllm_phase_seconds_total", "forward"): 2.5,
        ("batchllm_phase_seconds_total", "plan"): 1e-7,
        ("batchllm_job_seconds", ""): 3,
    }
    assert all((kind == "counter") == name.endswith("_total") for name, kind in kinds.items())


@pytest.fixture(autouse=True)
def nothing_shown() -> None:
    shown.clear()


def test_the_file_is_replaced_now_and_then_and_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "job.prom"
    path.write_bytes(metrics_text(progress()))  # of an earlier job
    with keep_metrics(path, shown.append, overwrite=False, log=pytest.fail) as on_progress:
        on_progress(progress(elapsed_s=1.0, finished=1))
        first = path.read_bytes()
        first_file = path.stat().st_ino
        on_progress(progress(elapsed_s=1.0 + SECONDS_BETWEEN_WRITES / 2, finished=2))
        assert path.read_bytes() == first
        on_progress(progress(elapsed_s=1.0 + SECONDS_BETWEEN_WRITES, finished=3))
        assert parse(path.read_bytes())[1]["batchllm_requests", "finished"] == 3
        assert path.stat().st_ino != first_file, "whoever has the old one open still reads it whole"
        on_progress(progress(elapsed_s=2.0 + SECONDS_BETWEEN_WRITES, finished=4))
    assert parse(path.read_bytes())[1]["batchllm_requests", "finished"] == 4
    assert os.listdir(tmp_path) == ["job.prom"]
    assert [progress.finished_requests for progress in shown] == [1, 2, 3, 4]


def test_without_a_file_progress_is_shown_all_the_same() -> None:
    with keep_metrics(None, shown.append, overwrite=False, log=pytest.fail) as on_progress:
        on_progress(progress())
    assert shown == [progress()]


def test_a_job_that_is_stopped_leaves_its_last_figures(tmp_path: Path) -> None:
    def run_and_stop() -> None:
        with keep_metrics(tmp_path / "m", shown.append, overwrite=False, log=pytest.fail) as on_progress:
            on_progress(progress(elapsed_s=1.0, finished=1))
            on_progress(progress(elapsed_s=1.1, finished=2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_and_stop()
    assert parse((tmp_path / "m").read_bytes())[1]["batchllm_requests", "finished"] == 2


def test_what_holds_something_else_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    with (
        pytest.raises(FileExistsError, match=r"metrics '.*notes': exists and holds something else; --overwrite"),
        keep_metrics(path, shown.append, overwrite=False, log=pytest.fail),
    ):
        pass
    with keep_metrics(path, shown.append, overwrite=True, log=pytest.fail) as on_progress:
        on_progress(progress())
    assert path.read_bytes() == metrics_text(progress())


def test_a_device_cannot_be_replaced() -> None:
    with (
        pytest.raises(OSError, match="metrics '/dev/null': expected a file"),
        keep_metrics(Path("/dev/null"), shown.append, overwrite=True, log=pytest.fail),
    ):
        pass


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with keep_metrics(tmp_path / "link", shown.append, overwrite=False, log=pytest.fail) as on_progress:
        on_progress(progress())
    assert (tmp_path / "link").is_symlink()
    assert parse((tmp_path / "target").read_bytes())


def test_a_file_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    told: list[str] = []
    with keep_metrics(folder / "m", shown.append, overwrite=False, log=told.append) as on_progress:
        folder.rmdir()
        on_progress(progress(elapsed_s=1.0))
        on_progress(progress(elapsed_s=100.0))
    assert told == [f"batchllm: metrics '{folder}/m': No such file or directory"]
