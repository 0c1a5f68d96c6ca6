"""Parcels handed out to actors of Ray: all of them come back, or are left out, whatever becomes of the replicas."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from batchllm.integrations.ray_data import cluster as ours
from batchllm.integrations.ray_data.cluster import MAX_RETRIES, Replicas

pytestmark = pytest.mark.usefixtures("cluster")


class Told:
    """Does what a parcel, or `start`, says. Both are noted in a file, as they begin."""

    def __init__(self, notes: str, start: str = "") -> None:
        self._notes = Path(notes)
        self(start)

    def __call__(self, parcel: str) -> str:
        with self._notes.open("a") as notes:
            notes.write(f"{parcel}\n")
        match parcel.split():
            case ["dies"]:
                os._exit(1)
            case ["raises"]:
                raise ModuleNotFoundError("no batchllm there")
            case ["sleeps"]:
                time.sleep(600)
        return parcel.upper()


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


def answer(parcels: list[str], notes: Path, number: int = 1, check: Any = lambda: None, **told: str) -> Iterator[str]:
    return Replicas(number, 1, 0).answer(parcels, lambda parcel: parcel, check, Told, notes=str(notes), **told)


def test_every_parcel_is_answered_once_and_the_first_ones_are_handed_out_first(notes: Path) -> None:
    assert list(answer(["a", "b", "c"], notes)) == ["A", "B", "C"]
    assert notes.read_text().split() == ["a", "b", "c"]
    notes.unlink()
    assert sorted(answer(["a", "b", "c"], notes, number=2)) == ["A", "B", "C"]
    assert list(answer([], notes)) == []


@pytest.mark.parametrize("parcel", ["dies", "raises"])
def test_a_parcel_that_ends_its_replica_is_handed_out_again_and_then_left_out(parcel: str, notes: Path) -> None:
    assert list(answer(["a", parcel, "b"], notes)) == ["A", "B"]
    assert notes.read_text().split().count(parcel) == MAX_RETRIES + 1


def test_while_nothing_comes_the_clock_is_looked_at_and_what_runs_is_ended(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "POLL_SECONDS", 0.01)

    def check() -> None:
        if notes.exists() and "sleeps" in notes.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(answer(["a", "sleeps", "b"], notes, check=check))
    while ray.available_resources().get("CPU") != 4:
        time.sleep(0.1)


def test_replicas_that_cannot_be_made_end_the_job_with_the_reason(notes: Path) -> None:
    with pytest.raises(ValueError, match=r"^Ray: ModuleNotFoundError: no batchllm there$"):
        list(answer(["a"], notes, start="raises"))
    notes.unlink()
    with pytest.raises(ValueError, match=r"^Ray: "):
        list(answer(["a"], notes, start="dies"))
    assert notes.read_text().split() == ["dies"] * (MAX_RETRIES + 1)
