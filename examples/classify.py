"""Few-shot classification: the labels are scored, not decoded: python examples/classify.py [MODEL]"""

import sys

from batchllm import LLM

LABELS = [" positive", " negative"]
SHOTS = """Review: A splendid evening. Sentiment: positive
Review: I want my money back. Sentiment: negative
Review: The best cake in town. Sentiment: positive
Review: It broke on the first day. Sentiment: negative
"""
REVIEWS = ["We laughed all night.", "The room smelled of smoke.", "Cheap, fast and friendly.", "Never again."]

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "models/smollm2-135m-instruct")
prompts = [f"{SHOTS}Review: {review} Sentiment:" for review in REVIEWS]

for review, choice in zip(REVIEWS, llm.choose(prompts, LABELS), strict=True):
    print(f"{LABELS[choice.index].strip()} ({max(choice.probabilities):.0%})  {review}")
