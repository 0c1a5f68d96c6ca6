"""What the runs of compare.py say: a table for the terminal, engines.csv, and a page and a plot of that."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from batchllm.models.description import ModelDescription
from benchmarks.bound import Work
from benchmarks.contestant import ARITHMETIC, PRECISIONS
from benchmarks.machine import QUIET_SHARE
from benchmarks.paper.report import read_csv, write_csv

Row = dict[str, Any]  # of one run

GEMM = "gemm_gflops_m"
COLUMNS = (
    "workload kv_tokens round contestant engine version variant dtype precision isa wall_s requests prompt_tokens"
    " distinct_prompt_tokens computed_prompt_tokens output_tokens output_tokens_per_s bound_s same_first_tokens"
    f" peak_rss_gib cpu_s foreign_share load_s {GEMM}1 {GEMM}16 {GEMM}64 {GEMM}256 {GEMM}2048 lm_head_gflops"
    " read_gb_per_s machine"
).split()

TEMPLATE = Path(__file__).parent / "engines.template.md"


def finished(
    rows: list[Row], names: list[str], work: Work, model: ModelDescription, machine: str, isa: str | None = None
) -> list[Row]:
    """The rows with what the job and the other runs tell of them, and without the tokens themselves. `names` are the
    contestants': the first of a precision is what its others are compared with. `isa` is what all were limited to."""
    for row in rows:
        row["isa"] = isa or ""
    for of_table in by_table(rows).values():
        ran = {row["contestant"] for row in of_table}
        first = next(name for name in names if name in ran)
        expected = {row["round"]: row["first_tokens"] for row in of_table if row["contestant"] == first}
        for row in of_table:
            pairs = list(zip(row["first_tokens"], expected.get(row["round"], []), strict=False))
            row["same_first_tokens"] = round(statistics.mean(a == b for a, b in pairs), 3) if pairs else ""
    for row in rows:
        row["distinct_prompt_tokens"] = work.distinct_prompt_tokens
        row["bound_s"] = round(work.bound_s(model, peak_gflops(row)), 3)
        row["machine"] = machine
    return [{column: "" if row.get(column) is None else row[column] for column in COLUMNS} for row in rows]


def peak_gflops(row: Row) -> float:
    return max(value for name, value in row.items() if name.startswith(GEMM))


def run_line(row: Row) -> str:
    seconds = ", ".join(f"{phase} {value:.2f}" for phase, value in row.get("seconds", {}).items())
    return (
        f"{row['workload']} round {row['round']}  {row['contestant']:<20} {row['wall_s']:8.2f} s,"
        f" {100 * row['foreign_share']:.0f} % foreign{f' ({seconds})' if seconds else ''}"
    )


@dataclass(frozen=True)
class Standing:
    """All runs of one contestant on one job; seconds are of those that had the machine to themselves, if any had."""

    runs: list[Row]
    first: list[Row]  # those of the contestant that this one is compared with

    @property
    def quiet_runs(self) -> list[Row]:
        return [row for row in self.runs if row["foreign_share"] < QUIET_SHARE] or self.runs

    def seconds(self) -> list[float]:
        return [row["wall_s"] for row in self.quiet_runs]

    def median_s(self) -> float:
        return statistics.median(self.seconds())

    def ratio(self) -> float:
        return self.median_s() / Standing(self.first, self.first).median_s()

    def round_ratios(self) -> list[float]:
        first_s = {row["round"]: row["wall_s"] for row in self.first}
        return [row["wall_s"] / first_s[row["round"]] for row in self.runs if row["round"] in first_s]

    def bound_share(self) -> float:
        return statistics.median(row["bound_s"] / row["wall_s"] for row in self.quiet_runs)

    def cells(self) -> dict[str, str]:
        seconds, last = self.seconds(), self.runs[-1]
        return {
            "contestant": last["contestant"],
            "median s": f"{self.median_s():.2f}",
            "from - to": f"{min(seconds):.2f} - {max(seconds):.2f}",
            "ratio": f"{self.ratio():.3f}",
            "ratio by round": " ".join(f"{ratio:.3f}" for ratio in self.round_ratios()),
            "of bound": f"{100 * self.bound_share():.0f} %",
            "computed": number(last["computed_prompt_tokens"]),
            "same first": f"{100 * last['same_first_tokens']:.0f} %" if last["same_first_tokens"] != "" else "",
            "RSS GiB": f"{max(row['peak_rss_gib'] for row in self.runs):.2f}",
            "foreign": f"{100 * max(row['foreign_share'] for row in self.runs):.0f} %",
        }


def number(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def standings(rows: list[Row]) -> list[Standing]:
    """Of one job's rows in one precision, in the order of their first runs."""
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row["contestant"], []).append(row)
    first = next(iter(runs.values()))
    return [Standing(of_one, first) for of_one in runs.values()]


def table(rows: list[dict[str, str]]) -> str:
    """Markdown, aligned to be read as it is: numbers, which is all but the first column, to the right."""
    header = list(rows[0])
    width = {name: max(len(name), *(len(row[name]) for row in rows)) for name in header}

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def row_line(row: dict[str, str]) -> str:
        first, *others = header
        return line([row[first].ljust(width[first]), *(row[name].rjust(width[name]) for name in others)])

    rule = line(["-" * width[name] if name == header[0] else "-" * (width[name] - 1) + ":" for name in header])
    return "\n".join([row_line({name: name for name in header}), rule, *map(row_line, rows)])


def job_report(rows: list[Row]) -> str:
    row = rows[0]
    pool = f", a KV pool of {row['kv_tokens']:,} tokens" if row["kv_tokens"] != "" else ""
    job = (
        f"{row['requests']:,} requests, {row['prompt_tokens']:,} prompt tokens of which"
        f" {row['distinct_prompt_tokens']:,} are distinct, {row['output_tokens']:,} output tokens{pool}.\n"
    )
    return job + "".join(table_report(title, of_table) for title, of_table in by_table(rows).items())


def table_report(title: str, rows: list[Row]) -> str:
    precision, machine = rows[0]["precision"], rows[0]["machine"]
    median = {
        name: statistics.median(row[name] for row in rows)
        for name in COLUMNS
        if name.startswith((GEMM, "read_gb_per_s", "bound_s"))
    }
    by_rows = ", ".join(f"{name.removeprefix(GEMM)}: {median[name]:.0f}" for name in median if name.startswith(GEMM))
    return (
        f"\n### {title}\n\n"
        f"{machine}. Matrix products in {ARITHMETIC[precision]} by rows, GFLOP/s: {by_rows}.\n"
        f"Memory read: {median['read_gb_per_s']:.0f} GB/s. Bound: {median['bound_s']:.2f} s.\n\n"
        f"{table([standing.cells() for standing in standings(rows)])}\n"
    )


def write(rows: list[Row], directory: Path) -> None:
    """engines.csv with these rows in place of older ones of the same jobs and tables; the page and the plot of all of
    them."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "engines.csv"
    measured = {(row["workload"], table_title(row)) for row in rows}
    old = read_rows(path) if path.exists() else []
    jobs = by_job([*(row for row in old if (row["workload"], table_title(row)) not in measured), *rows])
    write_csv([row for job in jobs.values() for row in job], path)
    (directory / "engines.md").write_text(page(jobs))
    plot(jobs, directory / "engines.png")


def read_rows(path: Path) -> list[Row]:
    """Of an engines.csv, which may be of a time when all ran in one precision and with all that the CPU has."""
    rows = [{"precision": PRECISIONS[row["dtype"]], "isa": ""} | row for row in read_csv(path)]
    return [{column: row[column] for column in COLUMNS} for row in rows]


def by_job(rows: list[Row]) -> dict[str, list[Row]]:
    return {
        name: [row for row in rows if row["workload"] == name] for name in sorted({row["workload"] for row in rows})
    }


def table_title(row: Row) -> str:
    return f"{row['precision']}, {row['isa']}" if row["isa"] else row["precision"]


def by_table(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows that are compared with each other, by the title of their table: those of one precision, then the same with
    an older instruction set."""
    ordered = sorted(rows, key=lambda row: (row["isa"], list(ARITHMETIC).index(row["precision"])))
    tables: dict[str, list[Row]] = {}
    for row in ordered:
        tables.setdefault(table_title(row), []).append(row)
    return tables


def page(jobs: dict[str, list[Row]]) -> str:
    names = ("contestant", "engine", "version", "variant", "dtype", "precision")
    contestants = dict.fromkeys(tuple(str(row[name]) for name in names) for job in jobs.values() for row in job)
    workloads = "\n".join(f"## {name}\n\n{job_report(job)}" for name, job in jobs.items())
    template = Template(TEMPLATE.read_text())
    return template.substitute(
        workloads=workloads, contestants=table([dict(zip(names, c, strict=True)) for c in contestants])
    )


def plot(jobs: dict[str, list[Row]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = list(by_table([row for job in jobs.values() for row in job]))
    figure, panels = plt.subplots(
        *(len(titles), len(jobs)),
        figsize=(3.4 * len(jobs), 2.6 * len(titles)),
        squeeze=False,
        layout="constrained",
    )
    colors = {
        name: f"C{i}" for i, name in enumerate(dict.fromkeys(r["contestant"] for job in jobs.values() for r in job))
    }
    for axes, (title, name) in zip(panels.flat, itertools.product(titles, jobs), strict=True):
        rows = by_table(jobs[name]).get(title)
        if rows is None:
            axes.set_visible(False)
            continue
        for place, standing in enumerate(standings(rows)):
            contestant, median_s, seconds = standing.runs[0]["contestant"], standing.median_s(), standing.seconds()
            spread = [[median_s - min(seconds)], [max(seconds) - median_s]]
            axes.barh(place, median_s, xerr=spread, color=colors[contestant], height=0.7)
            axes.text(0, place, f" {contestant}", va="center", fontsize=7)
        axes.axvline(statistics.median(row["bound_s"] for row in rows), color="k", linewidth=0.8, linestyle="--")
        axes.set(title=f"{name}, {title}", xlabel="seconds (dashed: bound)", yticks=[])
        axes.invert_yaxis()
    figure.savefig(path, dpi=110)
    plt.close(figure)
