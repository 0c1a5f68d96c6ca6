"""Many samples of one prompt, and their most frequent answer: python examples/vote.py [MODEL]"""

import re
import sys
from collections import Counter

from batchllm import LLM, SamplingParams

PROBLEMS = [
    "A book costs 4 dollars and a pen costs 3. What do two books and one pen cost?",
    "Tom has 12 apples and gives away a third of them. How many are left?",
]

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "models/smollm2-135m-instruct")
chats = [[{"role": "user", "content": f"{problem} Think, then end with the number."}] for problem in PROBLEMS]
params = SamplingParams(n=16, temperature=0.8, top_p=0.95, seed=0, max_tokens=96)

for problem, output in zip(PROBLEMS, llm.chat(chats, params), strict=True):
    numbers = [re.findall(r"\d+", sample.text)[-1:] for sample in output.outputs]
    votes = Counter(number for (number,) in filter(None, numbers))
    print(problem, "->", votes.most_common(3) or "no sample names a number")
