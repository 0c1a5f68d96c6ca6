"""A job on a transformers model that is already in memory: python examples/model_in_memory.py [MODEL]"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from batchllm.integrations.transformers import generate, lend

DOCUMENTS = Path(__file__).parent / "documents"

name = sys.argv[1] if len(sys.argv) > 1 else "models/smollm2-135m-instruct"
model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(name)
document = (DOCUMENTS / "iceland.txt").read_text()
questions = (DOCUMENTS / "iceland.questions.txt").read_text().splitlines()[:4]
chats = [[{"role": "user", "content": f"{document}\n\nIn one sentence: {question}"}] for question in questions]

for question, output in zip(questions, generate(model, tokenizer, chats, max_new_tokens=32), strict=True):
    print(f"{question}\n    {output.outputs[0].text.strip()}")

with lend(model, tokenizer) as llm:
    (choice,) = llm.choose(f"{document}\n\nThe capital of Iceland is", [" Oslo", " Reykjavik", " Dublin"])
    print(f"Reykjavik: {choice.probabilities[1]:.0%}")
print("the model is as it was:", model.config._attn_implementation, "attention")
