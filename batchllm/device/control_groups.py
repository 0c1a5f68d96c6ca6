"""The control groups (v2 or v1) that limit this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MOUNT = Path("sys/fs/cgroup")


def group_directories(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, bool]]:
    """The groups that govern `controller` ("cpu", "memory"): the process's own and those above it, up to the top, and
    whether each is of version 2. In a container names may be the host's, and only the top exists.

    `root` is the root of the file system to read `proc` and `sys` from.
    """
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        group = Path(path.lstrip("/"))
        for mount in _mounts(controllers, controller):
            yield from ((root / mount / part, not controllers) for part in (group, *group.parents))


def _mounts(controllers: str, controller: str) -> Iterator[Path]:
    """Version 1 names a mount by all its controllers, or by one of them."""
    if not controllers:
        yield MOUNT
    else:
        yield from (MOUNT / name for name in dict.fromkeys((controllers, controller)))


def read(path: Path) -> str:
    """Empty if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
