"""The stages of a run, each with its own limits; one that fails or is cut short does not stop the others.

Started by run.sh, whose head lists the environment variables. Standard library only, so that it stands whatever falls.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.gpu_day.results import DRY, OUT, RESULTS, is_failure, read, record, set_older_aside, write

ROOT = Path(__file__).resolve().parents[2]
MODEL = "models/smollm2-135m-instruct"
STANDIN = "build/standin"

DEFAULT_BUDGET_S = 540.0
SPARE_S = 10.0  # of the budget, for what comes after the last stage
LEAST_S = 8.0  # below, no stage is begun
GRACE_S = 5.0  # between the request to end and the end
TIMED_OUT = 124  # exit status, as that of timeout(1)
MAX_FAILURES = "40"  # of tests

NCU = shlex.split(
    "ncu --clock-control none --target-processes all --kernel-name regex:attention_.*_kernel --launch-skip 6"
    " --launch-count 6 --page details --section SpeedOfLight --section ComputeWorkloadAnalysis"
    " --section MemoryWorkloadAnalysis --section Occupancy --section WarpStateStats --section InstructionStats"
    " --section LaunchStats"
)
SANITIZER = shlex.split("compute-sanitizer --kernel-regex kns=batchllm --error-exitcode 9 --print-limit 20 --tool")


@dataclass(frozen=True)
class Command:
    arguments: Sequence[str]
    limit_s: float  # of DEFAULT_BUDGET_S; a larger budget gives more
    log: str = "log.txt"


@dataclass(frozen=True)
class Stage:
    commands: Callable[[], list[Command]]  # asked for when the stage begins
    is_dry: bool = False  # a dry run has it, too
    tool: str | None = None  # on PATH, without which it cannot run
    package: str | None = None  # likewise, of Python


def program(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.gpu_day.{name}", *arguments]


def pytest(suite: str) -> list[str]:
    """The tests marked gpu of tests/engine or, "kernels", of all other folders; in processes that are replaced after a
    CUDA error where pytest-xdist is installed."""
    files = [file.relative_to(ROOT) for file in sorted((ROOT / "tests").rglob("test_*.py"))]
    chosen = [str(file) for file in files if ("engine" in file.parts) == (suite == "engine")]
    marked = [file for file in chosen if "mark.gpu" in (ROOT / file).read_text()]
    options = ["-m", "gpu", "-o", "timeout=90", "--maxfail", MAX_FAILURES, "-p", "benchmarks.gpu_day.pytest_plugin"]
    if importlib.util.find_spec("xdist"):
        workers = os.environ.get("WORKERS", str(min(12, os.cpu_count() or 1)))
        options += ["-n", workers, "--dist", "worksteal", "--max-worker-restart", MAX_FAILURES]
    threads = "OMP_NUM_THREADS=2"  # of the references on the CPU, in as many processes
    return ["env", threads, sys.executable, "-m", "pytest", *options, "--suite", suite, *marked]


def env() -> list[Command]:
    """Builds the extension where none was carried or installed that has what this run needs."""
    probe = f"import batchllm_ext as ext, sys; sys.exit(not ({DRY} or ext.has_cuda()))"
    is_there = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, stderr=subprocess.DEVNULL).returncode == 0
    build = [] if is_there else [Command(["bash", "benchmarks/gpu_day/build_extension.sh"], 110)]
    return [*build, Command(program("machine"), 30)]


def engine() -> list[Command]:
    ours = Command(program("engine"), 60)
    if DRY:
        return [ours]
    standin = [] if (ROOT / os.environ["BATCHLLM_TEST_MODEL"]).exists() else [Command(program("standin", STANDIN), 30)]
    return [*standin, Command(pytest("engine"), 80), ours]


# In order of value.
STAGES = {
    "env": Stage(env, is_dry=True),
    "smoke": Stage(lambda: [Command(program("smoke"), 45)], is_dry=True),
    "kernels": Stage(lambda: [Command(pytest("kernels"), 100)], package="pytest"),
    "engine": Stage(engine, is_dry=True, package="transformers"),
    "bench": Stage(
        lambda: [
            Command(program("bench", "torch"), 110),
            Command(program("bench", "flashinfer"), 40),
            Command(program("bench", "flex"), 60),
        ],
        is_dry=True,
    ),
    "costs": Stage(lambda: [Command(program("costs"), 40)], is_dry=True),
    "e2e": Stage(lambda: [Command(program("e2e"), 170)], is_dry=True),
    "peers": Stage(
        lambda: [Command(program("peers", "transformers"), 90), Command(program("peers", "vllm"), 120)], is_dry=True
    ),
    "ncu": Stage(lambda: [Command([*NCU, *program("bench", "ours")], 60, "ncu.txt")], tool="ncu"),
    "sanitizer": Stage(
        lambda: [
            Command([*SANITIZER, tool, *program("smoke", "--sanitized")], 60, "sanitizer.txt")
            for tool in ("memcheck", "racecheck")
        ],
        tool="compute-sanitizer",
    ),
}


def run_command(command: Command, limit_s: float) -> int:
    """Its exit status; 124 where it had to be ended, by SIGINT, on which a test run sums up, and then by SIGKILL."""
    environment = os.environ | {"GPU_DAY_END": str(time.time() + limit_s - 2)}
    with (OUT / command.log).open("a") as log:
        log.write(f"\n=== {shlex.join(command.arguments)}\n")
        log.flush()
        process = subprocess.Popen(
            command.arguments,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            return TIMED_OUT
        finally:
            with suppress(ProcessLookupError):  # the group is this command's own: workers that it left go with it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_stage(name: str, stage: Stage, end: float, scale: float) -> int:
    """The first exit status of its commands that is not 0; each is run, as long as there is time."""
    begin = time.time()
    statuses = []
    for command in stage.commands():
        limit_s = min(scale * command.limit_s, end - time.time())
        if limit_s < LEAST_S:
            write({"what": name, "skipped": f"no time left for {shlex.join(command.arguments)}"})
            break
        statuses.append(run_command(command, limit_s))
    status = next((status for status in statuses if status), 0)
    write({"stage": name, "rc": status, "seconds": round(time.time() - begin, 1)})
    return status


def why_no_gpu() -> str | None:
    """Why nothing but a dry run can be done here. torch is asked in a process of its own."""
    probe = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 'torch sees no GPU')"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    return result.stderr.strip().rpartition("\n")[2] if result.returncode else None


def why_skipped(stage: Stage, no_gpu: str | None, end: float) -> str | None:
    if DRY and not stage.is_dry:
        return "a dry run has no GPU"
    if no_gpu:
        return no_gpu
    if stage.tool and not shutil.which(stage.tool):
        return f"{stage.tool} is not on PATH"
    if stage.package and importlib.util.find_spec(stage.package) is None:
        return f"{stage.package} is not installed"
    if end - time.time() < LEAST_S:
        return "no time left"
    return None


def commit() -> str | None:
    """None where the repository was copied without its history."""
    if not shutil.which("git"):
        return None
    result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return result.stdout.strip() or None


def main() -> None:
    names = os.environ.get("STAGES", " ".join(STAGES)).split()
    if unknown := [name for name in names if name not in STAGES]:
        sys.exit(f"no stage {unknown[0]}; there are {', '.join(STAGES)}")
    budget_s = float(os.environ.get("BUDGET", DEFAULT_BUDGET_S))
    end = time.time() + budget_s - SPARE_S
    scale = math.inf if DRY else max(1.0, budget_s / DEFAULT_BUDGET_S)  # in a dry run all that is left
    os.environ.setdefault("BATCHLLM_TEST_MODEL", MODEL if (ROOT / MODEL / "config.json").exists() else STANDIN)

    OUT.mkdir(parents=True, exist_ok=True)
    set_older_aside()
    record("run", dry=DRY, time=datetime.now(timezone.utc).isoformat(timespec="seconds"), commit=commit(), stages=names)
    no_gpu = None if DRY else why_no_gpu()
    waiting, red = list(names), []
    while waiting:
        name = waiting.pop(0)
        stage = STAGES[name]
        print(f"=== {name}, {end - time.time():.0f} s left", flush=True)
        if reason := why_skipped(stage, no_gpu, end):
            write({"stage": name, "skipped": reason})
        elif run_stage(name, stage, end, scale):
            red.append(name)
            if name == "smoke" and not DRY:  # where the first error is, before anything else
                waiting = ["sanitizer", *(other for other in waiting if other != "sanitizer")]

    failures = [line for line in read(RESULTS) if "what" in line and is_failure(line)]
    print(f"=== {len(failures)} failures" + (f"; red: {' '.join(red)}" if red else ""), flush=True)
    for line in failures[:30]:
        print(str(line)[:300])
    subprocess.run([*program("report"), "--print", str(RESULTS)], cwd=ROOT)
    sys.exit(1 if red else 0)


if __name__ == "__main__":
    main()
