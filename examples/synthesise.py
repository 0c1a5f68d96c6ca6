"""Synthetic data: several samples for every pair of a topic and a style: python examples/synthesise.py [MODEL]"""

import itertools
import json
import sys

from batchllm import LLM, SamplingParams

TOPICS = ["the sea", "a lost key", "the first day of school"]
STYLES = ["a letter", "a riddle"]

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "models/smollm2-135m-instruct")
pairs = list(itertools.product(TOPICS, STYLES))
chats = [[{"role": "user", "content": f"Write two sentences about {topic}, as {style}."}] for topic, style in pairs]
params = SamplingParams(n=2, temperature=1.0, min_p=0.1, seed=0, max_tokens=64)

for (topic, style), output in zip(pairs, llm.chat(chats, params), strict=True):
    for sample in output.outputs:
        print(json.dumps({"topic": topic, "style": style, "text": sample.text.strip()}))
