"""Cases by number: forests with lengths on both sides of every tile's edge."""

from __future__ import annotations

import numpy as np

from tests.cases import Case, Request, heads

# Tiles have 16, 64 and 128 rows and 16, 32, 48 or 64 keys.
EDGES = [edge + side for edge in (16, 32, 64, 128) for side in (-1, 0, 1)]
MOST_PACKED_ROWS = 1500


def generated_case(number: int) -> Case:
    rng = np.random.default_rng([7, number])
    group_size = int(rng.choice([1, 3, 4, 5, 7, 8, 16]))
    paths = _paths(rng)
    num_requests = int(rng.integers(1, 9)) if number % 100 else int(rng.integers(100, 301))
    if num_requests > 100:
        group_size = min(group_size, 5)
    requests, packed_rows = [], 0
    for _ in range(num_requests):
        path = paths[rng.integers(len(paths))]
        own = 1 + int(rng.integers(20)) if num_requests > 100 else _length(rng)
        kind = rng.random()
        if kind < 0.1 and path and path[-1][1]:
            request = Request(path, None)  # all it sees is shared
        elif kind < 0.2:
            request = Request(path, own, int(rng.integers(1, own + 1)))  # a prefill chunk
        elif kind < 0.25 and path and path[-1][1]:
            rows = int(rng.integers(1, path[-1][1] + 1))
            request = Request(path, None, rows)  # a chunk of the prefix itself
        else:
            request = Request(path, own)
        packed_rows += request.rows * group_size
        if packed_rows > MOST_PACKED_ROWS and requests:
            break
        requests.append(request)
    longest = max(sum(length for _, length in path) for path in paths)
    return Case(
        f"generated_{number}",
        requests,
        **heads(group_size, int(rng.integers(1, 3))),
        head_dim=int(rng.choice([64, 64, 64, 96, 128, 256])),
        page_size=int(rng.choice([1, 16, 64, 256])),
        # Off, or such that it ends on either side of the border between shared and own.
        window_left=-1 if rng.random() < 0.7 else max(0, longest + int(rng.integers(-40, 10))),
        soft_cap=float(rng.choice([0.0, 0.0, 0.0, 10.0])),
        has_sinks=bool(rng.random() < 0.2),
        needle=str(rng.choice(["", "", "", "prefix", "own", "border"])),
        layout=str(rng.choice(["plain", "heads_first", "padded"])),
    )


def _length(rng) -> int:
    return int(rng.choice(EDGES)) if rng.random() < 0.6 else int(rng.integers(1, 200))


def _paths(rng) -> list[tuple]:
    """Nodes of a forest as their paths: chains of up to 7 levels with branches on the way; some nodes are empty."""
    paths: list[tuple] = [()]
    for label in range(int(rng.integers(1, 9))):
        parent = paths[-1] if rng.random() < 0.6 else paths[rng.integers(len(paths))]
        if len(parent) == 7:
            parent = ()
        length = 0 if rng.random() < 0.03 else _length(rng)
        paths.append((*parent, (str(label), length)))
    return paths
