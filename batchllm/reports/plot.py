"""The plot of a plan: how full the token batches and the KV memory are, step by step, under each policy."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from batchllm.estimate.job_plan import JobPlan
from batchllm.estimate.simulate import Policy, Simulation
from batchllm.jobs.files import write_file
from batchllm.reports.plan_text import NAMES

MAX_POINTS = 300  # of the longest line; each is then the mean of a run of steps, of one length for all lines
STYLES = {
    Policy.NONE: ("0.65", "-"),
    Policy.LRU: ("tab:orange", "-"),
    Policy.LRU_SORTED: ("tab:orange", "--"),
    Policy.RADIX_LPM: ("tab:green", "-"),
    Policy.RADIX_DFS: ("tab:green", "--"),
    Policy.BATCHLLM_SINGLE: ("tab:blue", ":"),
    Policy.BATCHLLM: ("tab:blue", "-"),
    Policy.BATCHLLM_BLEND: ("tab:purple", "-."),
}


def save_plot(path: Path, plan: JobPlan, simulations: dict[Policy, Simulation], *, overwrite: bool = False) -> None:
    """Writes the figure in the format of the path's suffix."""
    image = BytesIO()
    plan_figure(plan, simulations).savefig(image, format=path.suffix.removeprefix(".").lower(), dpi=150)
    write_file("plot", path, image.getvalue(), overwrite=overwrite)


def plan_figure(plan: JobPlan, simulations: dict[Policy, Simulation]) -> Figure:
    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    batch, memory = figure.subplots(2, 1, sharex=True)
    run_length = -(-max(simulation.num_steps for simulation in simulations.values()) // MAX_POINTS)
    for simulation in simulations.values():
        draw(batch, simulation, simulation.num_decode_tokens + simulation.num_prefill_tokens, run_length)
        draw(memory, simulation, simulation.used_kv_tokens, run_length)
    memory.axhline(plan.kv_tokens, color="black", linewidth=0.8)
    peak = max(simulation.peak_kv_tokens for simulation in simulations.values())
    memory.set_ylim(top=1.05 * min(plan.kv_tokens, 2 * peak))  # the line is out of sight if memory is plentiful
    memory.set_title(f"KV memory: {plan.kv_tokens:,} tokens", loc="right", fontsize="medium")
    figure.suptitle(
        f"{plan.requests:,} requests of {plan.prompt_tokens:,} prompt tokens, {plan.model}: simulated, not measured"
    )
    batch.set_ylabel("simulated tokens of a step")
    memory.set_ylabel("simulated KV tokens in use")
    memory.set_xlabel("step" if run_length == 1 else f"step (means of {run_length})")
    memory.set_ylim(bottom=0)
    batch.set_yscale("log")  # decodes alone are a hundredth of a full batch
    for axes in (batch, memory):
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.margins(x=0.01)
        axes.grid(alpha=0.3)
    figure.legend(*batch.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def draw(axes: Axes, simulation: Simulation, per_step: NDArray[np.integer], run_length: int) -> None:
    color, line = STYLES[simulation.policy]
    is_ours = simulation.policy is Policy.BATCHLLM
    begin = np.arange(0, simulation.num_steps, run_length)
    means = np.add.reduceat(per_step, begin) / np.diff([*begin, simulation.num_steps])
    axes.plot(
        *(begin, means),
        color=color,
        linestyle=line,
        linewidth=2.2 if is_ours else 1.2,
        zorder=3 if is_ours else 2,
        label=NAMES[simulation.policy],
    )
