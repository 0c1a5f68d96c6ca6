"""Tables as CSV and Markdown, and the page in docs/results that shows them."""

from __future__ import annotations

import csv
from pathlib import Path
from string import Template

from benchmarks.paper.sharing import Row

TEMPLATE = Path(__file__).parent / "README.template.md"


def cell(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else value


def markdown_table(rows: list[Row]) -> str:
    header = list(rows[0])
    align = ["---" if isinstance(value, str) else "--:" for value in rows[0].values()]
    body = [[cell(row[name]) for name in header] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, align, *body])


def rounded(rows: list[Row]) -> list[Row]:
    return [
        {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()} for row in rows
    ]


def write_csv(rows: list[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return [{name: parse(text) for name, text in row.items()} for row in csv.DictReader(file)]


def parse(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def write_page(tables: dict[str, list[Row]], directory: Path) -> None:
    """README.md from the template, in which $name is a table or a fact; a name without a value is a KeyError."""
    values = {name: markdown_table(rows) for name, rows in tables.items()}
    values |= {name: cell(value) for name, value in facts(tables).items()}
    (directory / "README.md").write_text(Template(TEMPLATE.read_text()).substitute(values))


def find(rows: list[Row], where: Row) -> Row:
    """The one row that has these values."""
    (row,) = (row for row in rows if where.items() <= row.items())
    return row


def facts(tables: dict[str, list[Row]]) -> Row:
    """Figures that the page's prose names."""
    degree_16 = find(tables["sharing_degrees"], {"degree": 16, "GPU GiB": 80})
    smallest, *_, largest = tables["long_prefix"]
    a100 = find(tables["long_prefix"], {"GPU GiB": 80})
    gains = [row["depth gains"] for row in tables["depth"]]
    shortfalls = [row["one level"] - row["paper's pass"] for row in tables["depth"]]
    shared, distinct = tables["preprocessing"]
    capped = find(tables["valleys"], {"job": "uniform", "schedule": "ours, 256 requests"})
    free = find(tables["valleys"], {"job": "uniform", "schedule": "ours"})
    sorted_free = find(tables["valleys"], {"job": "uniform", "schedule": "LRU sorted, 2,048 requests"})
    shuffled, long_first = (
        {row["schedule"]: row for row in tables["valleys"] if row["job"] == job}
        for job in ("two kinds, shuffled", "two kinds, long texts first")
    )
    bound, kappa_0, default, single, _ = tables["trace_sharing"]
    tight, *_, whole = tables["trace_pools"]
    lengths = {row["lengths"]: row for row in tables["unknown_lengths"] if row["job"] == "log-normal"}
    return {
        "degree_16_ours": degree_16["ours"],
        "degree_16_lru": degree_16["LRU"],
        "long_ours": a100["ours"],
        "long_lru": a100["LRU"],
        "long_lru_sorted": a100["LRU, sorted"],
        "long_lru_smallest": smallest["LRU"],
        "long_lru_largest": largest["LRU"],
        "depth_least": min(gains),
        "depth_most": max(gains),
        "paper_shortfall": f"{max(shortfalls):.2f}",
        "python_shared_s": shared["plain Python s"],
        "python_distinct_s": distinct["plain Python s"],
        "ours_shared_ms": shared["ours ms"],
        "times_faster": shared["times faster"],
        "capped_valleys": capped["steps in valleys %"],
        "free_valleys": free["steps in valleys %"],
        "capped_steps": capped["steps"],
        "free_steps": free["steps"],
        "capped_s": capped["model: s"],
        "sorted_free_s": sorted_free["model: s"],
        "free_s": free["model: s"],
        "ratio_steps": shuffled["ours"]["steps"],
        "ratio_s": shuffled["ours"]["model: s"],
        "blend_s": shuffled["ours, blended"]["model: s"],
        "shuffled_steps": shuffled["ours, by arrival"]["steps"],
        "shuffled_s": shuffled["ours, by arrival"]["model: s"],
        "long_first_steps": long_first["ours, by arrival"]["steps"],
        "long_first_s": long_first["ours, by arrival"]["model: s"],
        "trace_name": tables["trace_job"][0]["trace"],
        "trace_requests": tables["trace_job"][0]["requests"],
        "trace_bound": bound["tokens saved"],
        "trace_bound_gap": bound["tokens saved"] - kappa_0["tokens saved"],
        "trace_default_gap": bound["tokens saved"] - default["tokens saved"],
        "trace_default": default["saved %"],
        "trace_single": single["saved %"],
        "tight_pool": tight["pool %"],
        "tight_lru": tight["LRU"],
        "tight_radix": tight["radix, LPM"],
        "whole_ahead": whole["ours ahead, tokens"],
        "known_steps": lengths["known"]["steps"],
        "learned_steps": lengths["learned"]["steps"],
        "bound_steps": lengths["bound"]["steps"],
        "unknown_pool": round(lengths["known"]["pool %"]),
    }
