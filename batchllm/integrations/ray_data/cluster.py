"""Replicas on a cluster: what each of them takes, and parcels handed out to them."""

from __future__ import annotations

import gc
import logging
import os
import queue
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

T = TypeVar("T")
Parcel = dict[str, Any]
Answering = Callable[[Parcel], pa.Table]  # what a replica does
POLL_SECONDS = 1.0
MAX_RETRIES = 2  # of a parcel whose replica's process ended
LOST = f"the process that was to answer it ended {MAX_RETRIES + 1} times"


@contextmanager
def connected(address: str, num_replicas: int, num_threads: int | None) -> Iterator[None]:
    """Ray on this machine ("local") or at an address; what the program itself has connected to is left as it is.

    Raises ConnectionError where there is none."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": address}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"num_cpus": max(os.cpu_count() or 1, num_replicas * (num_threads or 1)), "include_dashboard": False}
    try:
        ray.init(**options, logging_level="ERROR", log_to_driver=False)
        logging.getLogger("ray.data").setLevel("ERROR")
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Replicas:
    """How many, and what each of them takes of a node."""

    number: int
    num_threads: int
    num_gpus: int

    @classmethod
    def of(cls, number: int, num_threads: int | None, device: str) -> Replicas:
        """A GPU each where the device is "cuda", and as many threads as let all of them in, if no number is given.

        Raises ValueError where the cluster has no room for them."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        num_gpus = int(device == "cuda")

        def room(threads: int) -> int:
            cpus = (int(node.get("CPU", 0)) // threads for node in nodes)
            gpus = (int(node.get("GPU", 0)) if num_gpus else number for node in nodes)
            return sum(map(min, cpus, gpus))

        most = num_threads or max((int(node.get("CPU", 0)) for node in nodes), default=1)
        least = num_threads or 1
        for threads in range(most, least - 1, -1):
            if room(threads) >= number:
                return cls(number, threads, num_gpus)
        each = f"{least} CPUs" if num_threads else "a CPU"
        gpu = " and a GPU" * num_gpus
        raise ValueError(f"replicas: the cluster has {each}{gpu} for {room(least)} of them, got {number}")

    def answer(self, parcels: Iterable[Parcel], replica: Callable[..., Answering], **constructor: Any) -> Dataset:
        """What `replica(**constructor)` makes of each parcel, a table, in the order in which they are done.

        parcels: each is handed out whole, the first ones first. One whose replica dies is taken again, MAX_RETRIES
        times, or left out, which ends nothing else. They are put into Ray's object store one after the other, so no two
        are in this process at a time."""
        context = DataContext.get_current().copy()
        context.max_errored_blocks = -1
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        gc.collect()  # replicas of a pass before this one live, and keep their CPUs, while a cycle refers to them
        stored = [ray.put(parcel) for parcel in parcels]
        # Rows are numbers of parcels, and their blocks are made here: to look at stored ones, Ray runs tasks, and one
        # that it sends to a node that has just gone is waited for.
        numbers = [pa.table({"parcel": [number]}) for number in range(len(stored))]
        with DataContext.current(context), warnings.catch_warnings():
            # No parameter of map_batches' own says how often a row is tried.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            return ray.data.from_blocks(numbers).map_batches(
                Fed,
                batch_size=1,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=min(self.number, len(stored)), max_tasks_in_flight_per_actor=1),
                fn_constructor_args=(stored, replica, constructor),
                num_cpus=self.num_threads,
                num_gpus=self.num_gpus,
                max_task_retries=MAX_RETRIES,
            )


class Fed:
    """A replica that gets its parcels by their numbers."""

    def __init__(
        self, stored: list[ray.ObjectRef], replica: Callable[..., Answering], constructor: dict[str, Any]
    ) -> None:
        self._stored, self._replica = stored, replica(**constructor)

    def __call__(self, numbers: pa.Table) -> pa.Table:
        [number] = numbers["parcel"].to_pylist()
        return self._replica(ray.get(self._stored[number]))


def halved(parcel: list[T]) -> list[list[T]]:
    """What is handed out in the place of a parcel that did not come back."""
    middle = (len(parcel) + 1) // 2
    return [half for half in (parcel[:middle], parcel[middle:]) if half]


def polled(items: Iterable[T], check: Callable[[], None]) -> Iterator[T]:
    """The same items; while none comes, `check` is called every POLL_SECONDS, and may raise. Where this is left early,
    the others end with the item that comes next."""
    found: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    is_left = threading.Event()

    def take() -> None:
        try:
            for item in items:
                found.put((True, item))
                if is_left.is_set():
                    return
            found.put((False, None))
        except RayError as error:  # no replica could be made
            found.put((False, ValueError(f"Ray: {str(error).strip().splitlines()[-1]}")))
        except BaseException as error:
            found.put((False, error))

    threading.Thread(target=take, daemon=True).start()
    try:
        while True:
            try:
                is_item, item = found.get(timeout=POLL_SECONDS)
            except queue.Empty:
                check()
                continue
            if is_item:
                yield item
            elif item is None:
                return
            else:
                raise item
    finally:
        is_left.set()
