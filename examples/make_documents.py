#!/usr/bin/env python3
"""Writes examples/documents.jsonl: every question about every document, shuffled.

NAME.txt in documents/ is a document and NAME.questions.txt its questions, one a line. Each question
becomes one line of an OpenAI batch file. All lines open with the same system message, and the eight
lines about one document go on with the same text; the shuffle scatters them over the file, so that
whoever answers it has to find what they share.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

HERE = Path(__file__).resolve().parent
SYSTEM_MESSAGE = "You are a helpful assistant."
# Of three wordings tried, the one that kept the small model closest to the question.
USER_MESSAGE = """Here is a text:

{document}

Using the text above, answer this question in one sentence: {question}"""
MAX_COMPLETION_TOKENS = 64
SHUFFLE_SEED = 2024


def main() -> None:
    path = HERE / "documents.jsonl"
    path.write_text(make_batch(HERE / "documents"), encoding="utf-8")
    print(f"wrote {path}")


def make_batch(folder: Path) -> str:
    lines = []
    for questions_path in sorted(folder.glob("*.questions.txt")):
        name = questions_path.name.removesuffix(".questions.txt")
        document = (folder / f"{name}.txt").read_text(encoding="utf-8").strip()
        questions = questions_path.read_text(encoding="utf-8").splitlines()
        lines += [request_line(f"{name}-{number}", document, question) for number, question in enumerate(questions, 1)]
    random.Random(SHUFFLE_SEED).shuffle(lines)
    return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)


def request_line(custom_id: str, document: str, question: str) -> dict[str, object]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "smollm2-135m-instruct",
            "messages": [
                {"role": "system", "content": SYSTEM_MESSAGE},
                {"role": "user", "content": USER_MESSAGE.format(document=document, question=question)},
            ],
            "max_completion_tokens": MAX_COMPLETION_TOKENS,
            "temperature": 0,
        },
    }


if __name__ == "__main__":
    main()
