"""An LLM in a process that was forked after threads were used."""

from __future__ import annotations

from pathlib import Path

from tests.test_module import run_python


def test_a_job_in_a_forked_child_ends_at_once_with_the_word_spawn(tiny_dir: Path) -> None:
    """torch, which would wait for the same threads, is not asked before."""
    program = """
        import os, signal, sys
        from batchllm import LLM, SamplingParams

        llm = LLM(DIRECTORY, dtype="float32", num_threads=2)
        ask = lambda: llm.generate([[5] * 200] * 4, SamplingParams(max_tokens=2, ignore_eos=True), use_tqdm=False)
        ask()
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            try:
                ask()
            except RuntimeError as error:
                os._exit(3 if "spawn" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        assert len(ask()) == 4
    """
    run_python(program.replace("DIRECTORY", repr(str(tiny_dir))))
