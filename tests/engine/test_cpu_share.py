"""A process that may use part of the machine takes threads for that part, and reports what it waited for."""

import math
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from batchllm.device.cpu_share import CpuTime, cpu_quota, default_num_threads

SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}  # the call's number


def group(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("cpu_", "cpu.", 1)).write_text(text)


def quota(tmp_path: Path, lines: str) -> float:
    (tmp_path / "proc/self").mkdir(parents=True, exist_ok=True)
    (tmp_path / "proc/self/cgroup").write_text(lines)
    return cpu_quota(tmp_path)


def test_the_narrowest_group_above_a_process_counts(tmp_path: Path) -> None:
    for depth, text in (("", "max 100000"), ("a", "150000 100000"), ("a/b", "300000 100000"), ("c", "1000 100000")):
        group(tmp_path / "sys/fs/cgroup" / depth, cpu_max=text + "\n")
    assert quota(tmp_path, "0::/a/b\n") == 1.5
    assert quota(tmp_path, "0::/\n") == math.inf


def test_version_1_has_two_files_below_its_controllers(tmp_path: Path) -> None:
    groups = tmp_path / "sys/fs/cgroup"
    group(groups / "cpu,cpuacct" / "job", cpu_cfs_quota_us="250000\n", cpu_cfs_period_us="100000\n")
    group(groups / "cpu,cpuacct", cpu_cfs_quota_us="-1\n", cpu_cfs_period_us="100000\n")
    group(
        tmp_path / "sys/fs/cgroup" / "memory" / "job", cpu_cfs_quota_us="1\n", cpu_cfs_period_us="1\n"
    )  # not its business
    assert quota(tmp_path, "3:memory:/job\n2:cpu,cpuacct:/job\n0::/\n") == 2.5


def test_in_a_container_the_top_is_all_there_is_to_see(tmp_path: Path) -> None:
    group(tmp_path / "sys/fs/cgroup", cpu_max="200000 100000\n")
    assert quota(tmp_path, "0::/../../kubepods/pod7\n") == 2


@pytest.mark.parametrize("text", ["", "max", "half 100000", "100000 0", "max 100000"])
def test_what_says_nothing_is_no_quota(tmp_path: Path, text: str) -> None:
    group(tmp_path / "sys/fs/cgroup", cpu_max=text)
    assert quota(tmp_path, "0::/\n") == math.inf
    assert cpu_quota(tmp_path / "nowhere") == math.inf


@pytest.mark.parametrize(("allowed", "expected"), [(math.inf, 8), (9.0, 8), (2.5, 3), (2.0, 2), (0.2, 1)])
def test_threads_that_a_quota_lets_run(monkeypatch: pytest.MonkeyPatch, allowed: float, expected: int) -> None:
    monkeypatch.setattr("batchllm.device.cpu_share.cpu_quota", lambda: allowed)
    assert default_num_threads(8) == expected


def test_a_process_bound_to_one_cpu_takes_one_thread() -> None:
    program = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "import torch; from batchllm.device.cpu_share import default_num_threads\n"
        "print(default_num_threads(torch.get_num_threads()))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    assert subprocess.check_output([sys.executable, "-c", program], env=environment, text=True) == "1\n"


def test_waiting_is_told_from_running() -> None:
    """Two threads of one CPU wait for each other half of the time (Python's lock aside: they hash without it)."""
    import hashlib

    data, cpus = bytes(1 << 24), os.sched_getaffinity(0)
    threads = [threading.Thread(target=lambda: [hashlib.sha256(data) for _ in range(12)]) for _ in range(2)]
    os.sched_setaffinity(0, [min(cpus)])
    try:
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        before = CpuTime.now()
        time.sleep(0.1)
        found = CpuTime.now().since(before)
    finally:
        os.sched_setaffinity(0, cpus)
        for thread in threads:
            thread.join()
    assert 0 < found.ran_s <= 0.2
    assert found.waited_s > 0.05


def test_threads_of_a_runner_have_short_time_slices() -> None:
    """Those of its OpenMP team and those started later; a slice that is shorter already stays."""
    getattr_ = SCHED_GETATTR[platform.machine()]
    program = (
        "import batchllm_ext as ext, ctypes, os, struct, threading, torch\n"
        "def slice_ns(thread):\n"
        "    attributes = ctypes.create_string_buffer(48)\n"
        f"    assert ctypes.CDLL(None).syscall({getattr_}, thread, attributes, 48, 0) == 0\n"
        "    return struct.unpack_from('Q', attributes, 24)[0]\n"
        "torch.ones(1 << 22).sum()\n"  # starts the team
        "before = slice_ns(0)\n"
        "ext.shorten_time_slices(2)\n"
        "ext.shorten_time_slices(2)\n"
        "threads = lambda: map(int, os.listdir('/proc/self/task'))\n"
        "threading.Thread(target=lambda: print(before, *map(slice_ns, threads()))).start()"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    before, *found = map(int, subprocess.check_output([sys.executable, "-c", program], env=environment).split())
    assert len(found) == 3
    assert found == [min(before, 500_000)] * 3  # before Linux 6.12, all are 0
