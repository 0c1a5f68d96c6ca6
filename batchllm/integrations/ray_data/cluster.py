"""Replicas on a cluster: their resources, and how parcels are handed out to them."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

T = TypeVar("T")
Parcel = dict[str, Any]
POLL_SECONDS = 1.0
MAX_RETRIES = 2  # of a parcel whose replica was lost
LOST = f"the process that was to answer it ended {MAX_RETRIES + 1} times"


@contextmanager
def connected(address: str, num_replicas: int, num_threads: int | None) -> Iterator[None]:
    """Connects to Ray on this machine ("local") or at an address; an existing connection of the program is kept.

    Raises ConnectionError if there is no such cluster."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": address}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"num_cpus": max(os.cpu_count() or 1, num_replicas * (num_threads or 1)), "include_dashboard": False}
    try:
        ray.init(**options, logging_level="ERROR", log_to_driver=False)
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Replicas:
    """The number of replicas, and the resources that each takes from a node."""

    number: int
    num_threads: int
    num_gpus: int

    @classmethod
    def of(cls, number: int, num_threads: int | None, device: str) -> Replicas:
        """One GPU each if the device is "cuda"; by default as many threads as still let all of them fit.

        Raises ValueError if the cluster has no room for them."""
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

    def answer(
        self,
        parcels: Sequence[T],
        pack: Callable[[T], Parcel],
        check: Callable[[], None],
        replica: Callable[..., Any],
        **constructor: Any,
    ) -> Iterator[Any]:
        """What `replica(**constructor)` returns of each parcel, in the order in which they are done.

        parcels: the first ones are handed out first, each as `pack` makes it then. One whose replica is lost, with its
        process or its node, is handed out again, MAX_RETRIES times, or left out, which ends nothing else.
        check: is called at least every POLL_SECONDS, and may raise.

        A replica that is lost is made again, where there is room and as soon as there is: nothing is handed to one that
        does not stand yet, so nothing waits for it. One that finds no parcel to be handed out gives its place back.

        Raises ValueError where no replica can be made."""
        remote = ray.remote(num_cpus=self.num_threads, num_gpus=self.num_gpus)(replica)
        waiting, tries = deque(range(len(parcels))), Counter[int]()
        tasks: dict[ray.ObjectRef, tuple[ActorHandle, int | None]] = {}  # None: it is being made
        num_unmade = 0  # since one stood

        def make() -> None:
            actor = remote.remote(**constructor)
            tasks[actor.__ray_ready__.remote()] = actor, None

        for _ in range(min(self.number, len(parcels))):
            make()
        try:
            while waiting or any(number is not None for _, number in tasks.values()):
                check()
                for task in ray.wait(list(tasks), timeout=POLL_SECONDS)[0]:
                    actor, number = tasks.pop(task)
                    try:
                        result = ray.get(task)
                    except RayError as error:
                        ray.kill(actor)
                        if number is None:
                            num_unmade += 1
                            check_made(error, num_unmade, self.number)
                        elif tries[number] <= MAX_RETRIES:
                            waiting.append(number)
                        if waiting:
                            make()
                        continue
                    if waiting:
                        handed = waiting.popleft()
                        tries[handed] += 1
                        tasks[actor.__call__.remote(pack(parcels[handed]))] = actor, handed
                    else:
                        ray.kill(actor)
                    if number is None:
                        num_unmade = 0
                    else:
                        yield result
        finally:
            for actor, _ in tasks.values():
                ray.kill(actor)


def check_made(error: RayError, num_unmade: int, num_replicas: int) -> None:
    """Raises ValueError where a replica that could not be made says that none can be."""
    if isinstance(error, RayActorError) and not error.actor_init_failed and num_unmade <= MAX_RETRIES * num_replicas:
        return  # its process or its node was lost
    raise ValueError(f"Ray: {str(error).strip().splitlines()[-1]}")


def halved(parcel: list[T]) -> list[list[T]]:
    """The halves to hand out in place of a parcel that did not come back."""
    middle = (len(parcel) + 1) // 2
    return [half for half in (parcel[:middle], parcel[middle:]) if half]
