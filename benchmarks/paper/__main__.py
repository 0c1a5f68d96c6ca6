"""Runs the paper's experiments that need no GPU and writes tables, plots and a page about them.

    python -m benchmarks.paper [--trace conversation_trace.jsonl] [-o docs/results]

Needs matplotlib.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.conversation_trace import SLICE, read_trace
from benchmarks.paper import plots, report, scheduling, sharing, trace

PLOTTED_SCHEDULES = ("LRU, 256 requests", "ours, 256 requests", "ours, by arrival", "ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, help="a conversation trace; default: the 400 requests that are shipped")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.trace or SLICE
    conversations = read_trace(path)

    simulations = scheduling.schedules()
    experiments = {
        "sharing_degrees": sharing.sharing_degrees,
        "long_prefix": sharing.long_prefix,
        "depth": sharing.depth,
        "preprocessing": sharing.preprocessing,
        "valleys": lambda: scheduling.valleys(simulations),
        "unknown_lengths": lambda: scheduling.unknown_lengths(conversations),
        "trace_job": lambda: trace.description(path, conversations),
        "trace_sharing": lambda: trace.sharing(conversations),
        "trace_pools": lambda: trace.pools(conversations),
    }
    tables = {}
    for name, experiment in experiments.items():
        begin = time.perf_counter()
        tables[name] = report.rounded(experiment())
        report.write_csv(tables[name], options.output / f"{name}.csv")
        print(f"{name}: {time.perf_counter() - begin:.1f} s\n{report.markdown_table(tables[name])}\n", flush=True)

    for name, figure in {
        "sharing_degrees": plots.sharing_degrees(tables["sharing_degrees"]),
        "long_prefix": plots.long_prefix(tables["long_prefix"]),
        "valleys": plots.valleys(simulations, PLOTTED_SCHEDULES),
        "trace_pools": plots.trace_pools(tables["trace_pools"]),
    }.items():
        plots.save(figure, options.output / f"{name}.png")
    report.write_page(tables, options.output)


if __name__ == "__main__":
    main()
