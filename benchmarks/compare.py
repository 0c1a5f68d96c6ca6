"""Engines on the same jobs, in turns (A B C, B C A, ...), next to what the machine could do at that time.

    python -m benchmarks.compare batchllm vllm openvino --workloads W1 W4 --rounds 3 -o docs/results
    python -m benchmarks.compare 'base=.venv/bin/python ../base/benchmarks/bench_engine.py --serve --model DIR' \\
        'new=.venv/bin/python benchmarks/bench_engine.py --serve --model DIR' --workloads W1 W3 --rounds 5

A contestant is a name known here or NAME=COMMAND, the command of a process that speaks the protocol of contestant.py.
A contestant is compared with those of its precision, of which the first one named is what the others' ratios are to.
benchmarks/peers/README.md says how those known here are made.

Each round measures the ceilings of the machine (ceilings.py) in every precision that runs, then every contestant once;
all others are stopped meanwhile. A run starts when the machine is quiet, and what others took of it during the run is
recorded. -o DIR writes engines.csv with a row a run, engines.md and engines.png; workloads and precisions that are not
measured again keep their rows. --isa avx2 takes a CPU for an older one; that has tables of its own.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchllm.models.backend import describe_model
from batchllm.models.description import ModelDescription
from benchmarks import compare_report, isa
from benchmarks.bound import Work
from benchmarks.contestant import ARITHMETIC, read_requests
from benchmarks.contestant_process import ContestantError, ContestantProcess
from benchmarks.machine import describe, wait_until_quiet
from benchmarks.workloads import WORKLOADS, write_workload

BATCHLLM = "{python} benchmarks/bench_engine.py --serve --model {model}"
VLLM = "{peers}/vllm/bin/python -m benchmarks.peers.vllm_cpu --model {model}"
OPENVINO = "{peers}/openvino/bin/python -m benchmarks.peers.openvino_genai --model {peers}/openvino/model"
LLAMA_CPP = "{python} -m benchmarks.peers.llama_cpp --directory {peers}/llama_cpp"
TRANSFORMERS = "{python} -m benchmarks.peers.transformers_generate --model {model}"
KNOWN = {  # in bfloat16 where the name says nothing else
    "batchllm": f"{BATCHLLM} --dtype bfloat16",
    "batchllm-float32": f"{BATCHLLM} --dtype float32",
    "batchllm-int8": f"{BATCHLLM} --quantize int8",
    "vllm": VLLM,
    "vllm-float32": f"{VLLM} --dtype float32",
    "vllm-sorted": f"{VLLM} --sort",
    "vllm-planned": f"{VLLM} --plan",
    "vllm-planned-float32": f"{VLLM} --plan --dtype float32",
    "openvino": f"{OPENVINO}-fp16",
    "openvino-float32": f"{OPENVINO}-fp32 --dtype float32",
    "openvino-int8": f"{OPENVINO}-int8 --dtype int8",
    "openvino-at-once": f"{OPENVINO}-fp16 --at-once",
    "llama.cpp": LLAMA_CPP,
    "llama.cpp-Q8_0": f"{LLAMA_CPP} --dtype Q8_0",
    "llama.cpp-Q4_K_M": f"{LLAMA_CPP} --dtype Q4_K_M",
    "transformers": TRANSFORMERS,
    "transformers-float32": f"{TRANSFORMERS} --dtype float32",
}


@dataclass(frozen=True)
class Job:
    name: str
    path: Path
    kv_tokens: int | None = None


class Contest:
    """Contestants, started when a job is for them and again for the next job where they have died."""

    def __init__(self, commands: dict[str, str], *, timeout_s: float, quiet_limit_s: float) -> None:
        self.commands = commands
        self.timeout_s, self.quiet_limit_s = timeout_s, quiet_limit_s
        self.running: dict[str, ContestantProcess] = {}
        self.loaded: dict[str, dict[str, Any]] = {}  # what a running one said when it had loaded
        self.failures: list[str] = []

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:  # all of them, also where one cannot be closed
            for process in self.running.values():
                stack.callback(process.close)

    def load(self, job: Job) -> None:
        for name, command in self.commands.items():
            if name not in self.running or self.loaded[name]["kv_tokens"] != job.kv_tokens:
                if name not in self.running:
                    self.running[name] = ContestantProcess(name, command)
                if answer := self.ask(name, {"load": job.kv_tokens}):
                    self.loaded[name] = {"kv_tokens": job.kv_tokens, **answer}

    def run(self, job: Job, rounds: int, measure_ceilings: Callable[[str], dict[str, float]]) -> list[dict[str, Any]]:
        """A row a run, in the order they were made; `measure_ceilings` takes one of ARITHMETIC's values."""
        self.load(job)
        rows = []
        for round_number in range(rounds):
            arithmetic = {name: ARITHMETIC[self.loaded[name]["precision"]] for name in self.running}
            ceilings = {kind: measure_ceilings(kind) for kind in dict.fromkeys(arithmetic.values())}
            names = list(self.commands)
            begin = round_number % len(names)
            for name in names[begin:] + names[:begin]:
                if name not in self.running:
                    continue
                wait_until_quiet(self.quiet_limit_s)
                if answer := self.ask(name, {"run": str(job.path)}):
                    row = {"contestant": name, "round": round_number, **self.loaded[name], **answer}
                    row |= ceilings[arithmetic[name]]
                    print(compare_report.run_line(row), flush=True)
                    rows.append(row)
        return rows

    def ask(self, name: str, message: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return self.running[name].ask(message, self.timeout_s)
        except ContestantError as error:
            del self.running[name]
            self.failures.append(str(error))
            print(error, file=sys.stderr, flush=True)
            return None


def measure_ceilings(model: str, arithmetic: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.ceilings", "--model", model, "--arithmetic", arithmetic]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def parse_contestants(arguments: list[str], **names: str) -> dict[str, str]:
    """{name: command}. Raises ValueError that names an argument that is neither known nor NAME=COMMAND."""
    commands = {}
    for argument in arguments:
        name, _, command = argument.partition("=")
        if not command and name not in KNOWN:
            raise ValueError(f"contestant {argument!r}: expected NAME=COMMAND or one of {', '.join(KNOWN)}")
        commands[name] = command or KNOWN[name].format(**names)
    return commands


def make_job(workload: str, directory: Path) -> Job:
    if workload in WORKLOADS:
        return Job(workload, write_workload(workload, directory), WORKLOADS[workload].kv_tokens)
    if not Path(workload).is_file():
        raise ValueError(f"workload {workload!r}: expected a file or one of {', '.join(WORKLOADS)}")
    return Job(Path(workload).stem, Path(workload))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestants", nargs="+", metavar="CONTESTANT", help=f"NAME=COMMAND, or of {', '.join(KNOWN)}")
    parser.add_argument("--workloads", nargs="+", default=["W1", "W2", "W3", "W4"], help="of workloads.py, or files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--isa", choices=isa.LIMITS, help="the instruction set that all are limited to")
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--peers", default="build/peers", help="where benchmarks/peers/install.sh made them")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds that a contestant may take to answer")
    parser.add_argument("--quiet-limit", type=float, default=60, help="seconds to wait for a quiet machine")
    parser.add_argument("-o", "--output", type=Path, help="directory of engines.csv, engines.md and engines.png")
    options = parser.parse_args()
    if options.isa:
        isa.limit(options.isa)
    with tempfile.TemporaryDirectory() as directory:
        try:
            commands = parse_contestants(
                options.contestants, python=sys.executable, model=options.model, peers=options.peers
            )
            jobs = [make_job(workload, Path(directory)) for workload in options.workloads]
            model = describe_model(Path(options.model))
        except (ValueError, FileNotFoundError) as error:
            parser.error(str(error))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that stopped contestants are ended first
        with Contest(commands, timeout_s=options.timeout, quiet_limit_s=options.quiet_limit) as contest:
            for job in jobs:
                report_job(contest, job, model, options)
    sys.exit(1 if contest.failures else 0)


def report_job(contest: Contest, job: Job, model: ModelDescription, options: argparse.Namespace) -> None:
    runs = contest.run(job, options.rounds, lambda arithmetic: measure_ceilings(options.model, arithmetic))
    if not runs:
        return
    work = Work.of(read_requests(job.path), model.windows)
    rows = compare_report.finished(runs, list(contest.commands), work, model, describe(), options.isa)
    print(f"\n{job.name}: {compare_report.job_report(rows)}", flush=True)
    if options.output:
        compare_report.write(rows, options.output)


if __name__ == "__main__":
    main()
