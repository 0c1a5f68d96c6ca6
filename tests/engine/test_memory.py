"""A run's peak resident memory is its weights, the KV pages it used, and at most 1 GiB."""

import json
import subprocess
import sys

import pytest

JOB = """
import json, re, sys
from pathlib import Path
from batchllm import LLM, SamplingParams

llm = LLM(sys.argv[1], dtype=sys.argv[2])
prompts = [[1000 + group] * 200 + [2000 + reader] * 20 for group in range(4) for reader in range(100)]
llm.generate(prompts, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True), use_tqdm=False)
kv_bytes = llm.config.kv_elements_per_token * llm.dtype.itemsize
print(json.dumps({
    # Of this program: getrusage's is also what the process was before that started it.
    "peak": int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024,
    "weights": (llm.directory / "model.safetensors").stat().st_size * llm.dtype.itemsize // 2,  # stored in bf16
    "kv_pages": llm.stats["peak_kv_tokens"] * kv_bytes,
}))
"""


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.full)])
def test_peak_memory_is_weights_and_kv_and_one_gib(smollm2, dtype):
    run = subprocess.run([sys.executable, "-c", JOB, str(smollm2), dtype], capture_output=True, text=True, check=True)
    measured = json.loads(run.stdout)
    assert measured["peak"] < measured["weights"] + measured["kv_pages"] + 2**30
    assert measured["peak"] > measured["weights"] + measured["kv_pages"]  # both were really in it
