"""What no call into the module may do: end the process, or hang it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

import batchllm_ext as ext

CLASSES = [value for value in vars(ext).values() if isinstance(value, type)]
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run_python(program: str, **environment: str) -> str:
    """What the program prints; its end by a signal, or by its own alarm, is an error."""
    path = os.pathsep.join([ROOT, *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "2", **environment, "PYTHONPATH": path}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, (result.returncode, result.stderr[-2000:])
    return result.stdout


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_object_that_was_never_initialised_is_a_type_error_to_use(cls: type) -> None:
    uninitialised = cls.__new__(cls)
    properties = [name for name, value in vars(cls).items() if isinstance(value, property)]
    others = [name for name in vars(cls) if not name.startswith("_") and name not in properties]
    methods = [name for name in others if not isinstance(vars(cls)[name], staticmethod)]
    for name in properties:
        with pytest.raises(TypeError, match=r"not initialised: __init__\(\) was not called"):
            getattr(uninitialised, name)
    for name in methods:
        with pytest.raises(TypeError):
            getattr(uninitialised, name)()
    if "__str__" in vars(cls):
        with pytest.raises(TypeError):
            str(uninitialised)


def test_an_argument_that_was_never_initialised_is_a_type_error_too() -> None:
    message = "not initialised"
    with pytest.raises(TypeError, match=message):
        ext.choose_segments(ext.PrefixTrie.__new__(ext.PrefixTrie))
    with pytest.raises(TypeError, match=message):
        ext.PlanLayout(ext.AttentionPlan.__new__(ext.AttentionPlan), 3)
    with pytest.raises(TypeError, match=message):
        ext.attention(ext.DevicePlan.__new__(ext.DevicePlan), None, None, None)


FORK = """
    import os, signal, numpy as np, batchllm_ext as ext
    from tests.planner.replay import make_planner

    def fails_with(call, text):
        try:
            call()
        except RuntimeError as error:
            return text in str(error)

    x, weight = np.ones((4096, 256), np.float32), np.ones(256, np.float32)
    pages, slots = np.ones((256, 16, 1, 16), np.float32), np.arange(4096)
    heads = pages.reshape(4096, 1, 16).copy()
    norm = lambda **options: ext.rms_norm(x, weight, eps=0.0, out=x, **options)
    append = lambda **options: ext.append_kv(heads, heads, slots, pages, pages.copy(), **options)
    planner = make_planner([[1, 2, 3], [1, 2, 4]], [2, 2], 8)
    if {used_before}:
        norm(), append()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        good = fails_with(norm, "spawn") and fails_with(append, "spawn")
        good = good and fails_with(lambda: planner.stats, "spawn") and fails_with(planner.next_batch, "spawn")
        norm(num_threads=1), append(num_threads=1)
        good = good and make_planner([[1, 2, 3], [1, 2, 4]], [2, 2], 8).next_batch().num_tokens == 4
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    norm(), append(), planner.next_batch()
    print("parent goes on")
"""


@pytest.mark.parametrize("used_before", [True, False], ids=["after its threads were used", "before"])
def test_a_forked_child_that_would_wait_for_threads_is_told_to_spawn(used_before: bool) -> None:
    assert run_python(FORK.replace("{used_before}", str(used_before))) == "parent goes on\n"


def test_a_forked_child_is_told_so_by_attention_and_before_it_by_the_plan() -> None:
    program = """
        import os, signal, batchllm_ext as ext
        from tests.cases import Case, decodes, prefix

        heads = {"num_qo_heads": 4, "num_kv_heads": 4, "head_dim": 32}
        inputs = Case("fork", decodes(prefix(3000), [3] * 40), **heads).make_inputs()
        make_plan = lambda num_threads: ext.plan_attention(**inputs.plan_arguments, num_threads=num_threads)
        plan = make_plan(2)
        run = lambda plan: ext.attention(plan, inputs.q, inputs.k_pages, inputs.v_pages)
        run(plan)
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # rather than to wait for ever
            num_told = 0
            for call in (lambda: run(plan), lambda: make_plan(2)):
                try:
                    call()
                except RuntimeError as error:
                    num_told += "spawn" in str(error)
            run(make_plan(1))
            os._exit(num_told)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    """
    run_python(program)


@pytest.mark.parametrize("num_threads", ["1000000", "2147483647"])
def test_an_environment_that_asks_for_a_million_threads_gets_what_is_of_use(num_threads: str) -> None:
    program = """
        import numpy as np, batchllm_ext as ext

        x = np.ones((64, 32), np.float32)
        ext.rms_norm(x, x[0].copy(), eps=0.0, out=x)
        logits = np.zeros((50_000, 700), np.float32)
        token_ids = np.zeros(50_000, np.int32)
        ext.argmax_and_lse(logits, token_ids=token_ids, lse=np.zeros(50_000, np.float32))
        threads = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("Threads"))
        print(threads <= 1100)
    """
    assert run_python(program, OMP_NUM_THREADS=num_threads, OPENBLAS_NUM_THREADS="1") == "True\n"


def test_memory_that_there_is_not_is_a_memory_error_of_the_call() -> None:
    """Of the kernel's own memory, with threads at work; the process goes on."""
    program = """
        import resource, numpy as np, batchllm_ext as ext
        from tests.cases import Case, decodes, prefix

        def attention(inputs, out, lse):
            plan = ext.plan_attention(**inputs.plan_arguments, num_threads=2, share="always")
            return ext.attention(plan, inputs.q, inputs.k_pages, inputs.v_pages, out=out, lse=lse)

        requests = decodes(prefix(300), [3] * 40)
        small = Case("small", requests, num_qo_heads=1, num_kv_heads=1, head_dim=16).make_inputs()
        large = Case("large", requests, num_qo_heads=8, num_kv_heads=1, head_dim=8192).make_inputs()
        outputs = [(np.zeros_like(inputs.q), np.zeros(inputs.q.shape[:2], np.float32)) for inputs in (small, large)]
        attention(small, *outputs[0])
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), resource.RLIM_INFINITY))
        for _ in range(3):
            try:
                attention(large, *outputs[1])
                print("enough memory")
            except MemoryError:
                print("MemoryError")
        attention(small, *outputs[0])
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        attention(large, *outputs[1])
        print("goes on")
    """
    assert run_python(program).splitlines() == ["MemoryError"] * 3 + ["goes on"]
