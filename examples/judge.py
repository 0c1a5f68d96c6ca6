"""LLM as a judge: two answers to a question, compared in both orders: python examples/judge.py [MODEL]"""

import sys

from batchllm import LLM

RULES = "You compare two answers to a question. The better one is true and says what was asked.\n"
PAIRS = [
    ("What is the capital of Iceland?", "Reykjavik is the capital of Iceland.", "Iceland is an island."),
    ("How many legs has a spider?", "Six.", "A spider has eight legs."),
]

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "models/smollm2-135m-instruct")
prompts = [
    f"{RULES}Question: {question}\nAnswer A: {a}\nAnswer B: {b}\nThe better answer is"
    for question, first, second in PAIRS
    for a, b in ((first, second), (second, first))
]
choices = llm.choose(prompts, [" A", " B"])

for (question, first, second), one, other in zip(PAIRS, choices[0::2], choices[1::2], strict=True):
    first_wins = (one.probabilities[0] + other.probabilities[1]) / 2  # the advantage of a position cancels out
    print(f"{question} {first if first_wins >= 0.5 else second} ({max(first_wins, 1 - first_wins):.0%})")
