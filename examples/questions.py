"""Many questions on one document, which is computed only once: python examples/questions.py [MODEL]"""

import sys
from pathlib import Path

from batchllm import LLM, SamplingParams

DOCUMENTS = Path(__file__).parent / "documents"

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "models/smollm2-135m-instruct")
document = (DOCUMENTS / "iceland.txt").read_text()
questions = (DOCUMENTS / "iceland.questions.txt").read_text().splitlines()
chats = [[{"role": "user", "content": f"{document}\n\nIn one sentence: {question}"}] for question in questions]

for question, output in zip(questions, llm.chat(chats, SamplingParams(temperature=0, max_tokens=48)), strict=True):
    print(f"{question}\n    {output.outputs[0].text.strip()}")
stats = llm.stats
print(f"{stats['prompt_tokens']:,} prompt tokens, of which {stats['computed_prompt_tokens']:,} were computed")
