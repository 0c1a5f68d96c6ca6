"""What a grammar costs: CPU seconds of a step with every row bounded by a JSON schema of 20 fields, and without.

    python -m benchmarks.structured_outputs --model DIR [--rows 256] [--rounds 3]

Both jobs are the same prompts and the same number of tokens, in turns. Answers that end are parsed and checked against
the schema before anything is reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from batchllm import LLM, SamplingParams, StructuredOutputsParams
from benchmarks.machine import describe

KINDS: list[dict[str, Any]] = [
    {"type": "integer"},
    {"type": "boolean"},
    {"enum": ["low", "medium", "high"]},
    {"type": "string"},
    {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
]
PROPERTIES = {f"field_{i}": KINDS[i % len(KINDS)] for i in range(20)}
SCHEMA = {"type": "object", "properties": PROPERTIES, "required": list(PROPERTIES), "additionalProperties": False}
PYTHON_TYPES = {"integer": int, "boolean": bool, "string": str, "array": list}
NUM_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    llm = LLM(args.model)
    prompts = llm.tokenize([f"Describe item {i} as JSON: " for i in range(args.rows)])
    bounded = StructuredOutputsParams(json=SCHEMA)
    check_answers(llm, prompts[:16], bounded)
    free_s, bounded_s = [], []
    for _ in range(args.rounds):
        free_s.append(seconds_per_step(llm, prompts, None))
        bounded_s.append(seconds_per_step(llm, prompts, bounded))
    free, with_masks = statistics.median(free_s), statistics.median(bounded_s)
    more = statistics.median(b - f for f, b in zip(free_s, bounded_s, strict=True))
    print(f"{describe()}; {llm.dtype}, {args.rows} rows, {args.rounds} rounds in turns, medians")
    print(f"CPU time of a step: without {1e3 * free:.1f} ms, with masks {1e3 * with_masks:.1f} ms")
    print(f"masks take {1e3 * more:.1f} ms, {more / with_masks:.1%} of a step")


def seconds_per_step(llm: LLM, prompts: list[list[int]], grammar: StructuredOutputsParams | None) -> float:
    """Of CPU, all threads, all that a job of decode steps takes; every request is there for every step."""
    params = SamplingParams(
        temperature=0, max_tokens=NUM_TOKENS, ignore_eos=grammar is None, structured_outputs=grammar
    )
    begin = time.process_time()
    llm.generate(prompts, params, use_tqdm=False)
    return (time.process_time() - begin) / int(llm.stats["steps"])


def check_answers(llm: LLM, prompts: list[list[int]], grammar: StructuredOutputsParams) -> None:
    params = SamplingParams(temperature=0, max_tokens=1000, structured_outputs=grammar)
    for output in llm.generate(prompts, params, use_tqdm=False):
        answer = output.outputs[0]
        assert answer.finish_reason == "stop", answer
        value = json.loads(answer.text)
        assert list(value) == list(PROPERTIES)
        for name, kind in PROPERTIES.items():
            assert value[name] in kind["enum"] if "enum" in kind else type(value[name]) is PYTHON_TYPES[kind["type"]]


if __name__ == "__main__":
    main()
