#!/usr/bin/env python3
"""Shows a few questions and answers of a finished job: python examples/show_answers.py JOB.jsonl ANSWERS.jsonl [N]"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

from batchllm.text import printable


def main() -> None:
    job_path, answers_path, *rest = sys.argv[1:]
    num_shown = int(rest[0]) if rest else 4
    requests = {row["custom_id"]: row["body"] for row in read_jsonl(job_path)}
    answers = sorted(read_jsonl(answers_path), key=lambda row: row["custom_id"])
    for answer in answers[:: max(1, len(answers) // num_shown)][:num_shown]:
        question = requests[answer["custom_id"]]["messages"][-1]["content"].rpartition("in one sentence: ")[2]
        text = answer["response"]["body"]["choices"][0]["message"]["content"]
        print(f"\n{printable(answer['custom_id'])}: {printable(question)}")
        print(textwrap.indent(textwrap.fill(printable(" ".join(text.split())), 100), "    "))
    print()


def read_jsonl(path: str) -> list[dict]:
    with Path(path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    main()
