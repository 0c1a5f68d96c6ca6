#!/usr/bin/env python3
"""Shows a few questions and answers of a finished job, and its figures beside those of part of it without sharing:
python examples/show_answers.py JOB.jsonl ANSWERS.jsonl SUMMARY.json SUMMARY_LEVELS0.json"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from batchllm.text import printable

NUM_SHOWN = 4


def main() -> None:
    job, answers, shared, unshared = map(Path, sys.argv[1:])
    show_answers(read_jsonl(job), read_jsonl(answers))
    print(f"{'':34}{'lines':>8}{'prompt tokens':>15}{'computed':>10}{'seconds':>9}")
    for name, path in (("with prefix sharing", shared), ("without (--levels 0), of a part", unshared)):
        summary = json.loads(path.read_text())
        stats = summary["stats"]
        tokens = f"{stats['prompt_tokens']:15,}{stats['computed_prompt_tokens']:10,}"
        print(f"{name:34}{summary['num_answered']:8}{tokens}{stats['seconds']['total']:9.1f}")
    print()


def show_answers(job: list[dict[str, Any]], answers: list[dict[str, Any]]) -> None:
    requests = {row["custom_id"]: row["body"] for row in job}
    answers = sorted(answers, key=lambda row: row["custom_id"])
    for answer in answers[:: max(1, len(answers) // NUM_SHOWN)][:NUM_SHOWN]:
        question = requests[answer["custom_id"]]["messages"][-1]["content"].rpartition("in one sentence: ")[2]
        text = answer["response"]["body"]["choices"][0]["message"]["content"]
        print(f"\n{printable(answer['custom_id'])}: {printable(question)}")
        print(textwrap.indent(textwrap.fill(printable(" ".join(text.split())), 100), "    "))
    print()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    main()
