"""The memory behind the planner's pages, and how much of it this machine has."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from batchllm.device.control_groups import group_directories, read

# Share of the available memory for a pool of default size: activations, logits and the allocator need the rest.
POOL_SHARE = 0.75
MAP_NORESERVE = 0x4000  # Linux's; Python has no name for it before 3.13


class KvHeads(Protocol):
    """The shape of a layer's keys and values."""

    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


@dataclass(eq=False)  # a pool equals only itself
class PagedKVCache:
    """KV pages of all layers. Pages are touched (and so become resident) only when tokens are written to them.

    k_pages, v_pages: per layer [num_pages, page_size, num_kv_heads, head_dim].
    """

    k_pages: list[torch.Tensor]
    v_pages: list[torch.Tensor]
    num_pages: int
    page_size: int

    @classmethod
    def allocate(
        cls,
        layers: Sequence[KvHeads],
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> PagedKVCache:
        """Raises MemoryError, with the requested size, if the machine refuses it."""
        shapes = [(num_pages, page_size, layer.num_kv_heads, layer.head_dim) for layer in layers for _ in "kv"]
        sizes = [math.prod(shape) for shape in shapes]
        try:  # at once, so that a pool that is too large is refused, not half of it granted
            if torch.device(device).type == "cpu":
                memory = _unreserved(sum(sizes), dtype)
            else:
                memory = torch.empty(sum(sizes), dtype=dtype, device=device)
        except (RuntimeError, OSError, OverflowError) as error:
            size_gib = sum(sizes) * dtype.itemsize / 2**30
            raise MemoryError(
                f"kv_cache_tokens: a pool of {num_pages * page_size} tokens needs {size_gib:.1f} GiB: {error}"
            ) from None
        pages = [part.view(shape) for part, shape in zip(memory.split(sizes), shapes, strict=True)]
        return cls(pages[0::2], pages[1::2], num_pages, page_size)


def _unreserved(num_elements: int, dtype: torch.dtype) -> torch.Tensor:
    """Memory that is not counted until it is touched. If it were, like torch's, the adjacent pools of two engines could
    be one area to Linux, larger than the machine, and Linux lets no process with such an area fork."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    return torch.frombuffer(mmap.mmap(-1, num_elements * dtype.itemsize, flags=flags), dtype=dtype)


def affordable_kv_tokens(kv_bytes_per_token: int, device: torch.device) -> int:
    """The largest pool that the memory available now can hold, leaving room for everything else."""
    return int(POOL_SHARE * _available_bytes(device)) // kv_bytes_per_token


def check_kv_tokens(kv_cache_tokens: int, kv_bytes_per_token: int, device: torch.device) -> None:
    """Raises MemoryError for a pool that is larger than the memory available now. Linux would grant it and later kill
    the process that uses it."""
    available, num_bytes = _available_bytes(device), kv_cache_tokens * kv_bytes_per_token
    if num_bytes > available:
        raise MemoryError(
            f"kv_cache_tokens: a pool of {kv_cache_tokens} tokens needs {num_bytes / 2**30:.1f} GiB, and "
            f"{available / 2**30:.1f} GiB are free: give at most {available // kv_bytes_per_token}"
        )


def _available_bytes(device: torch.device) -> int:
    free: int = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory_bytes()
    return free


def available_memory_bytes(root: Path = Path("/")) -> int:
    """What this process may still allocate: MemAvailable, or less if a cgroup (v2 or v1) limits it.

    `root` is the root of the file system to read `proc` and `sys` from.
    """
    meminfo = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines() if ":" in line)
    available = int(meminfo["MemAvailable"].split()[0]) * 1024
    return min([available, *_cgroup_headrooms(root)])


def _cgroup_headrooms(root: Path) -> list[int]:
    """Limit minus use (without reclaimable file cache) of every cgroup of this process."""
    headrooms = []
    for directory, is_v2 in group_directories("memory", root):
        if is_v2:
            limit_name, usage_name, file_key = "memory.max", "memory.current", "inactive_file"
        else:
            limit_name, usage_name = "memory.limit_in_bytes", "memory.usage_in_bytes"
            file_key = "total_inactive_file"
        limit, usage = read(directory / limit_name).strip(), read(directory / usage_name).strip()
        if limit.isdigit() and usage.isdigit():
            stat = dict(entry.split() for entry in read(directory / "memory.stat").splitlines())
            headrooms.append(max(0, int(limit) - int(usage) + int(stat.get(file_key, 0))))
    return headrooms
