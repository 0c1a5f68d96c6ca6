"""Questions on documents as a Ray Dataset, answered by two replicas: python examples/ray_documents.py [MODEL]

Needs `pip install 'batchllm-ext[ray]'`."""

import sys
from pathlib import Path

import ray

from batchllm import SamplingParams
from batchllm.integrations.ray_data import answer_dataset

DOCUMENTS = Path(__file__).parent / "documents"
QUESTIONS = 4  # on each document

model = sys.argv[1] if len(sys.argv) > 1 else "models/smollm2-135m-instruct"
rows = []
for number in range(QUESTIONS):  # documents in turn: the plan brings together what they share
    for path in sorted(DOCUMENTS.glob("*.questions.txt")):
        document = path.name.removesuffix(".questions.txt")
        text, question = (DOCUMENTS / f"{document}.txt").read_text(), path.read_text().splitlines()[number]
        messages = [{"role": "user", "content": f"{text}\n\nIn one sentence: {question}"}]
        rows.append({"document": document, "question": question, "messages": messages})

params = SamplingParams(temperature=0, max_tokens=32)
answered = answer_dataset(ray.data.from_items(rows), model, params, replicas=2, column="messages")

prompt_tokens = cached_tokens = 0
for row in answered.iter_rows():
    print(f"{row['document']}: {row['question']}\n    {row['error'] or row['answer'].strip()}")
    prompt_tokens += row["prompt_tokens"] or 0
    cached_tokens += row["cached_tokens"] or 0
print(f"{prompt_tokens:,} prompt tokens, of which {prompt_tokens - cached_tokens:,} were computed")
