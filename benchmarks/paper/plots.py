"""The plots of docs/results."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from batchllm.estimate.simulate import Simulation
from benchmarks.paper.scheduling import BUDGET, batch_tokens
from benchmarks.paper.sharing import Row

STYLES = {  # column -> line
    "ideal": {"color": "0.7", "linewidth": 5},
    "ours": {"color": "C0", "marker": "o"},
    "ours, one level": {"color": "C0", "linestyle": ":", "marker": "x"},
    "LRU": {"color": "C3", "marker": "v"},
    "LRU, sorted": {"color": "C3", "linestyle": "--", "marker": "^"},
    "radix, LPM": {"color": "C2", "marker": "<"},
    "radix, DFS": {"color": "C2", "linestyle": "--", "marker": ">"},
}


def lines(axes: Axes, rows: Iterable[Row], x: str, *, ticks: str | None = None) -> None:
    """Every column of rows that has a style, over column x."""
    rows = list(rows)
    for column, style in STYLES.items():
        if column in rows[0]:
            axes.plot([row[x] for row in rows], [row[column] for row in rows], label=column, markersize=4, **style)
    axes.set(xlabel=x, xscale="log", ylim=(-3, 103))
    axes.set_xticks([row[x] for row in rows], [str(row[x]) for row in rows], minor=False)
    axes.minorticks_off()


def sharing_degrees(rows: list[Row]) -> Figure:
    memory = sorted({row["GPU GiB"] for row in rows}, reverse=True)
    figure, panels = plt.subplots(1, len(memory), figsize=(10, 3.4), sharey=True)
    for axes, gib in zip(panels, memory, strict=True):
        lines(axes, [row for row in rows if row["GPU GiB"] == gib], "degree")
        axes.set_title(f"{gib} GiB of GPU memory")
    panels[0].set_ylabel("prompt tokens saved, %")
    panels[-1].legend(fontsize=7)
    return figure


def long_prefix(rows: list[Row]) -> Figure:
    figure, axes = plt.subplots(figsize=(5.5, 3.4))
    lines(axes, rows, "GPU GiB")
    for reported in (92.6, 6.3):
        axes.axhline(reported, color="0.6", linewidth=0.8, label=f"{reported} % (reported)")
    axes.set(ylabel="prompt tokens saved, %", title="16,000 shared + 200 own tokens, degree 16")
    axes.legend(fontsize=7, loc="center left")
    return figure


def trace_pools(rows: list[Row]) -> Figure:
    figure, axes = plt.subplots(figsize=(5.5, 3.4))
    lines(axes, rows, "pool %")
    best = max(value for row in rows for name, value in row.items() if name in STYLES)
    axes.set(ylabel="prompt tokens saved, %", title="Conversation trace", ylim=(0, 1.1 * best))
    axes.legend(fontsize=7)
    return figure


def valleys(simulations: dict[tuple[str, str], Simulation], schedules: Iterable[str]) -> Figure:
    """Tokens of every step, as means over hundredths of the job."""
    jobs = list(dict.fromkeys(job for job, _ in simulations))
    schedules = list(schedules)
    figure, panels = plt.subplots(len(schedules), len(jobs), figsize=(11, 6), sharey=True, squeeze=False)
    for column, job in enumerate(jobs):
        longest = max(simulations[job, schedule].num_steps for schedule in schedules)
        for axes, schedule in zip(panels[:, column], schedules, strict=True):
            simulation = simulations[job, schedule]
            bins = np.linspace(0, simulation.num_steps, min(200, simulation.num_steps) + 1).astype(int)
            decodes, tokens = (
                np.add.reduceat(counts, bins[:-1]) / np.diff(bins)
                for counts in (simulation.num_decode_tokens, batch_tokens(simulation))
            )
            axes.stairs(tokens, bins, fill=True, color="C0", alpha=0.4, label="prefill")
            axes.stairs(decodes, bins, fill=True, color="C1", label="decode")
            axes.axhline(BUDGET / 2, color="0.4", linewidth=0.8, linestyle=":")
            axes.set(xlim=(0, longest), ylim=(0, 1.05 * BUDGET))
            if column == 0:
                axes.set_ylabel(schedule, fontsize=8)
        panels[0, column].set_title(job, fontsize=9)
        panels[-1, column].set_xlabel("step")
    panels[0, -1].legend(fontsize=7)
    return figure


def save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)
