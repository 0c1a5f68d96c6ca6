"""What a job costs beside its model: CPU and memory per request, from the line that is read to the line that is
written.

    python -m benchmarks.job_driver --requests 10000 100000 1000000 [--chat] [--json FILE]

The model is tiny and its forward pass gives zeros, so that tokenizer, planner, sampler, texts and files are all that is
left. Every size runs in a process of its own. Memory is what the process has at most beyond what it has once the model
is loaded, without the token ids; it is checked that each line has its answer."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from batchllm import LLM, run_job
from batchllm.engine.runner import CpuRunner
from tests.engine import tiny


class ZerosForward(CpuRunner):
    """A runner whose forward pass computes nothing."""

    def __init__(self, llm: LLM) -> None:
        super().__init__(llm.engine.model, num_threads=1)
        self._hidden_size = llm.config.hidden_size

    def forward(self, batch: Any, plans: Any, logit_plans: Any, kv_cache: Any) -> torch.Tensor:
        return torch.zeros(len(batch.output_rows), self._hidden_size)


def write_job(path: Path, num_requests: int, *, is_chat: bool) -> None:
    options = {"max_tokens": 1, "temperature": 0, "ignore_eos": True}
    with path.open("w") as file:
        for i in range(num_requests):
            text = f"Is {i} prime?"
            url, prompt = "/v1/completions", {"prompt": text}
            if is_chat:
                url, prompt = "/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}
            line = {"custom_id": f"request-{i}", "method": "POST", "url": url, "body": prompt | options}
            file.write(json.dumps(line) + "\n")


def measure(folder: Path, num_requests: int, *, is_chat: bool) -> dict[str, Any]:
    tiny.save(tiny.FAMILIES["llama"].model(), folder / "model")
    tiny.save_tokenizer(folder / "model")
    write_job(folder / "in.jsonl", num_requests, is_chat=is_chat)
    llm = LLM(folder / "model", dtype="float32", num_threads=1, max_batch_tokens=8192, kv_cache_tokens=1 << 18)
    llm.engine.runner = ZerosForward(llm)
    llm.apply_chat_template([{"role": "user", "content": "Hello"}])  # what is loaded on first use is loaded
    llm.generate([[5]], use_tqdm=False)
    before_bytes, start_s = peak_bytes(), time.process_time()
    summary = run_job(folder / "in.jsonl", folder / "out.jsonl", llm, log=lambda line: None)
    cpu_s = time.process_time() - start_s
    assert (summary.num_answered, summary.num_failed) == (num_requests, 0)
    token_bytes = 4 * summary.stats["prompt_tokens"]
    start_s = time.process_time()
    assert run_job(folder / "in.jsonl", folder / "out.jsonl", llm, resume=True).num_earlier == num_requests
    return {
        "requests": num_requests,
        "kind": "chat" if is_chat else "completion",
        "cpu_us_per_request": 1e6 * cpu_s / num_requests,
        "bytes_per_request": (peak_bytes() - before_bytes - token_bytes) / num_requests,
        "skip_us_per_request": 1e6 * (time.process_time() - start_s) / num_requests,
    }


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=[10_000, 100_000], metavar="N")
    parser.add_argument("--chat", action="store_true", help="lines of conversations instead of prompts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args()
    if len(options.requests) == 1:
        with tempfile.TemporaryDirectory() as folder:
            rows = [measure(Path(folder), options.requests[0], is_chat=options.chat)]
    else:
        rows = [in_a_process(n, is_chat=options.chat) for n in options.requests]
    print(f"{'requests':>10} {'kind':>10} {'CPU us':>8} {'bytes':>8} {'skip us':>8}   per request")
    for row in rows:
        figures = (row["cpu_us_per_request"], row["bytes_per_request"], row["skip_us_per_request"])
        print(f"{row['requests']:10,} {row['kind']:>10} {figures[0]:8.1f} {figures[1]:8,.0f} {figures[2]:8.2f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def in_a_process(num_requests: int, *, is_chat: bool) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "benchmarks.job_driver", "--requests", str(num_requests), "--json", file.name]
        subprocess.run([*command, *(["--chat"] if is_chat else [])], check=True, stdout=subprocess.DEVNULL)
        [row] = json.loads(Path(file.name).read_text())
    return dict(row)


if __name__ == "__main__":
    main()
