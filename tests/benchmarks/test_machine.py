"""What a stretch of time cost, as /proc tells it."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time

from benchmarks.machine import Meter, peak_rss_bytes, process_tree

MIB = 1 << 20
SPIN = "import time\nwhile time.process_time() < 0.3: pass"
HOLD = f"x = bytearray({100 * MIB}); print(flush=True); input()"


def test_cpu_time_of_children_is_not_foreign() -> None:
    with Meter() as meter:
        subprocess.run([sys.executable, "-c", SPIN], check=True)
    assert meter.cpu_s > 0.25
    assert meter.wall_s > 0.3
    with Meter() as meter:
        time.sleep(0.05)
    assert meter.cpu_s < 0.05


def test_the_peak_is_of_the_stretch_and_of_the_whole_tree() -> None:
    with Meter() as before:
        pass
    with Meter() as own, mmap.mmap(-1, 100 * MIB) as memory:  # whatever an allocator keeps of what others gave back
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1
    assert 80 * MIB < own.peak_rss_bytes - before.peak_rss_bytes < 120 * MIB
    with (
        subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
        Meter() as tree,
    ):
        assert child.stdin
        assert child.stdout
        child.stdout.readline()
    assert 80 * MIB < tree.peak_rss_bytes - before.peak_rss_bytes < 140 * MIB, "the own peak is forgotten"


def test_a_tree_starts_at_its_root_and_has_all_that_descends_from_it() -> None:
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}])"
    with subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout
        child.stdout.readline()
        tree = process_tree(os.getpid())
        first, second = process_tree(child.pid)
    assert tree[0].pid == os.getpid()
    assert (first.pid, first.parent, second.parent) == (child.pid, os.getpid(), child.pid)
    assert {first.pid, second.pid} <= {process.pid for process in tree}


def test_a_child_that_has_ended_and_is_not_waited_for_has_no_memory() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        (ended,) = process_tree(child.pid)
        assert peak_rss_bytes([ended]) == 0
