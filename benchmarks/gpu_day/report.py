"""docs/results/gpu.md from a run's results, and gpu.jsonl, the results themselves, beside it.

    python -m benchmarks.gpu_day.report out/gpu_day/results.jsonl -o docs/results
    python -m benchmarks.gpu_day.report --print out/gpu_day/results.jsonl   to the terminal, a dry run's, too

Several files are those of several runs on one machine; of what was measured twice the last counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare_report import table
from benchmarks.gpu_day.results import Line, is_failure, read

OURS = "ours"
Cells = dict[str, str]
Format = Callable[[Any], str]


def check(lines: list[Line], path: Path) -> None:
    """Raises ValueError where these are not the results of a run on a GPU."""
    runs = of_kind(lines, "run")
    if not runs:
        raise ValueError(f"{path}: no line of a run; expected the results.jsonl that run.sh writes")
    if any(run.get("dry") for run in runs):
        raise ValueError(f"{path}: these are results of a dry run, on a CPU")
    if not of_kind(lines, "gpu"):
        raise ValueError(f"{path}: no line of the GPU; the stage env writes it")


def of_kind(lines: list[Line], what: str) -> list[Line]:
    """Those that hold a result."""
    return [line for line in lines if line.get("what") == what and not is_failure(line) and "skipped" not in line]


def number(value: float) -> str:
    """Three digits at least."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cell(text: str) -> str:
    """What may stand in a table of Markdown."""
    return text.replace("|", "/").replace("\n", " ")


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def pivot(lines: list[Line], rows: Sequence[str], column: str, value: str, show: Format = number) -> list[Cells]:
    """A row for each combination of the fields `rows`, and in it `value` in a column for each value of `column`."""
    columns = list(dict.fromkeys(str(line[column]) for line in lines))
    cells: dict[tuple, Cells] = {}
    for line in lines:
        key = tuple(line[field] for field in rows)
        row = cells.setdefault(key, {**dict(zip(rows, map(str, key), strict=True)), **dict.fromkeys(columns, "")})
        row[str(line[column])] = show(line[value])
    return list(cells.values())


def with_floor(cells: list[Cells], lines: list[Line], rows: Sequence[str]) -> list[Cells]:
    """With the floor, the prediction and our share of the floor beside our time."""
    ours = {tuple(str(line[field]) for field in rows): line for line in lines if line["contestant"] == OURS}
    for row in cells:
        line = ours.get(tuple(row[field] for field in rows))
        row["floor"] = number(line["floor_us"]) if line else ""
        row["ours of floor"] = percent(line["floor_us"] / line["us"]) if line else ""
        if any("predicted_us" in other for other in lines):
            row["predicted"] = number(line["predicted_us"]) if line and "predicted_us" in line else ""
    return cells


SHAPE = ("groups", "prefix", "readers", "own")


def machine(lines: list[Line]) -> str:
    gpu, versions = of_kind(lines, "gpu")[-1:], of_kind(lines, "versions")[-1:]
    text = []
    for line in gpu:
        smi = {"driver_version": "driver", "power.limit": "power limit", "clocks.max.sm": "at most"}
        facts = (
            line["name"],
            f"{line['multiprocessors']} multiprocessors",
            f"{line['memory_bytes'] / 2**30:.0f} GiB",
            *(f"{name} {line[field]}" for field, name in smi.items() if field in line),
        )
        text.append(", ".join(facts) + ".")
    for line in versions:
        named = ((name, value) for name, value in line.items() if name != "what" and value)
        text.append(", ".join(f"{name} {value}" for name, value in named) + ".")
    for line in of_kind(lines, "ceilings")[-1:]:
        text.append(
            f"Ceilings, measured: copy {line['copy_bytes_per_s'] / 1e12:.2f} TB/s,"
            f" read {line['read_bytes_per_s'] / 1e12:.2f} TB/s,"
            f" bfloat16 products {line['bf16_flops_per_s'] / 1e12:.0f} TFLOP/s."
        )
    return "\n".join(text)


def stages(lines: list[Line]) -> list[Cells]:
    return [
        {
            "stage": line["stage"],
            "result": line.get("skipped") or ("passed" if line["rc"] == 0 else f"rc {line['rc']}"),
            "seconds": str(line.get("seconds", "")),
        }
        for line in lines
        if "stage" in line
    ]


def suites(lines: list[Line]) -> list[Cells]:
    names = ("suite", "passed", "failed", "skipped", "seconds")
    suites = [line for line in lines if line.get("what") == "tests"]
    rows = [{name: str(line[name]) for name in names[:-1]} | {"seconds": f"{line['seconds']:.0f}"} for line in suites]
    for kind in ("smoke", "engine"):
        checks = [line for line in lines if line.get("what") == kind]
        passed, failed = len(of_kind(lines, kind)), sum(map(is_failure, checks))
        if checks:
            rows.append(
                dict(zip(names, (kind, str(passed), str(failed), str(len(checks) - passed - failed), ""), strict=True))
            )
    return rows


def decodes(lines: list[Line]) -> list[Cells]:
    found = of_kind(lines, "decode")
    return with_floor(pivot(found, SHAPE, "contestant", "us"), found, SHAPE)


def prefills(lines: list[Line]) -> list[Cells]:
    found = of_kind(lines, "prefill")
    return with_floor(pivot(found, ("rows", "context"), "contestant", "us"), found, ("rows", "context"))


def jobs(lines: list[Line]) -> list[Cells]:
    return pivot(of_kind(lines, "job"), ("job",), "contestant", "seconds")


def job_details(lines: list[Line]) -> list[Cells]:
    return [
        {
            "job": line["job"],
            "engine": line["contestant"],
            "seconds": number(line["seconds"]),
            "of roofline": percent(line["roofline_s"] / line["seconds"]),
            "requests per s": number(line["requests"] / line["seconds"]),
            "computed prompt tokens": f"{line['computed_prompt_tokens']:,}",
            "of": f"{line['prompt_tokens']:,}",
            "steps": f"{line['steps']:,}",
            "graphs captured": str(line["captures"]),
        }
        for line in of_kind(lines, "job")
        if "roofline_s" in line
    ]


def profiles(lines: list[Line]) -> list[Cells]:
    return [
        {
            "kernel": kernel,
            "job": line["job"],
            "ms": number(1e3 * kernel_s),
            "of the time": percent(kernel_s / line["seconds"]),
        }
        for line in of_kind(lines, "profile")
        for kernel, kernel_s in line["kernel_s"].items()
    ]


def costs(lines: list[Line]) -> list[Cells]:
    return [
        {"cost": name, "measured": f"{value:.4g}"}
        for line in of_kind(lines, "costs")[-1:]
        for name, value in line.items()
        if name != "what"
    ]


def failures(lines: list[Line]) -> list[Cells]:
    rows = []
    for line in lines:
        told = [name for name in ("error", "fatal", "message") if name in line]
        if told and "what" in line:
            what = " ".join(str(value) for name, value in line.items() if name not in told)
            rows.append({"what": cell(what), "error": cell(" ".join(str(line[name]) for name in told)[-200:])})
    return rows


# Title, what stands under it, the rows. A table without rows is left out.
Table = tuple[str, str, Callable[[list[Line]], list[Cells]]]
TABLES: list[Table] = [
    ("Stages", "", stages),
    ("Tests", "", suites),
    ("Failures", "", failures),
    (
        "Attention, decodes",
        "Microseconds of one layer, bfloat16, 32 query and 8 KV heads of 128, by CUDA graphs over more memory than the"
        " L2 cache. Readers, of each group. Floor: each K and V once, q and out at the copy rate, or the arithmetic at"
        " the rate of products. Predicted: `plan.predict_seconds` at the measured ceilings.",
        decodes,
    ),
    (
        "Attention, prefill chunks",
        "Microseconds of one layer, likewise. Context: tokens that the last row sees.",
        prefills,
    ),
    (
        "Splits",
        "Microseconds of plans that are balanced for so many multiprocessors.",
        lambda lines: pivot(of_kind(lines, "splits"), SHAPE, "multiprocessors", "us"),
    ),
    (
        "Costs",
        "Of what plans are made by (csrc/attention/plan/gpu_model.h). key_s: of one KV head on one multiprocessor.",
        costs,
    ),
    (
        "Between products",
        "Microseconds, by rows.",
        lambda lines: pivot(of_kind(lines, "operation"), ("operation",), "rows", "us"),
    ),
    (
        "Between products, share of the copy rate",
        "",
        lambda lines: pivot(of_kind(lines, "operation"), ("operation",), "rows", "of_copy", percent),
    ),
    (
        "Products",
        "torch's, microseconds, by rows.",
        lambda lines: pivot(of_kind(lines, "product"), ("product",), "rows", "us"),
    ),
    (
        "Products, share of the floor",
        "The weights, inputs and outputs at the copy rate, or the arithmetic at that of the large product.",
        lambda lines: pivot(of_kind(lines, "product"), ("product",), "rows", "of_floor", percent),
    ),
    (
        "Jobs",
        "Seconds from the job handed over to the last answer; a model of Qwen3-8B's shape, random weights, bfloat16.",
        jobs,
    ),
    (
        "Jobs, ours",
        "Roofline: the same steps with each part at the copy rate or that of products, and no time for anything else.",
        job_details,
    ),
    ("Profile", "Of a job's time, by kernel.", profiles),
]


def page(lines: list[Line]) -> str:
    is_dry = any(run.get("dry") for run in of_kind(lines, "run"))
    commits = dict.fromkeys(str(run["commit"])[:12] for run in of_kind(lines, "run") if run.get("commit"))
    title = "# A dry run: on a CPU, no figure means anything" if is_dry else "# On a GPU"
    parts = [
        title,
        "Written by `python -m benchmarks.gpu_day.report` from gpu.jsonl"
        + (f"; commit {', '.join(commits)}." if commits else "."),
        machine(lines),
    ]
    for name, text, rows_of in TABLES:
        if rows := rows_of(lines):
            parts += [f"## {name}", *([text] if text else []), table(rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def write(paths: list[Path], directory: Path) -> None:
    """gpu.md and gpu.jsonl. Raises ValueError for a dry run, results without a GPU, and those of different GPUs."""
    lines: list[Line] = []
    for path in paths:
        of_file = read(path)
        check(of_file, path)
        lines += of_file
    if len(names := sorted({line["name"] for line in of_kind(lines, "gpu")})) > 1:
        raise ValueError(f"expected the results of one GPU, got those of {', '.join(names)}")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "gpu.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "gpu.md").write_text(page(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results"), metavar="DIRECTORY")
    parser.add_argument("--print", action="store_true", help="print the page and write nothing")
    options = parser.parse_args()
    try:
        if options.print:
            print(page([line for path in options.results for line in read(path)]))
        else:
            write(options.results, options.output)
    except (OSError, ValueError) as error:
        sys.exit(f"report: {error}")


if __name__ == "__main__":
    main()
