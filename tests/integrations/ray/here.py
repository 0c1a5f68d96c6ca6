"""Replicas without Ray, in the driver's process."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from batchllm.integrations.ray_data.cluster import MAX_RETRIES, Replicas

T = TypeVar("T")


class Died(BaseException):
    """Stands for a process that ends."""


class HereReplicas(Replicas):
    """One, which takes all parcels. What dies is tried as often as on a cluster, and then left out."""

    def answer(
        self,
        parcels: Sequence[T],
        pack: Callable[[T], Any],
        check: Callable[[], None],
        replica: type,
        **constructor: Any,
    ) -> Iterator[Any]:
        made = replica(**constructor)
        for parcel in parcels:
            check()
            for _ in range(MAX_RETRIES + 1):
                try:
                    yield made(pack(parcel))
                    break
                except Died:
                    pass
