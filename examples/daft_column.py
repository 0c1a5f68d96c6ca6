"""A Daft column as one job: python examples/daft_column.py [MODEL]

Needs `pip install daft==0.7.26`.
"""

import sys

import daft

from batchllm import LLM, SamplingParams

WHOLE_COLUMN = 1 << 30  # most rows of a batch; by default Daft makes batches of 131,072
ANSWER = daft.DataType.struct({"answer": daft.DataType.string(), "cached_tokens": daft.DataType.int64()})
ARTICLE = "Iceland is an island in the North Atlantic. Its capital is Reykjavik, and its economy rests on fish."
QUESTIONS = ["Where is Iceland?", "What is its capital?", "What does its economy rest on?"]


@daft.cls(max_concurrency=1)  # one engine, which has the machine to itself
class Answers:
    def __init__(self, model: str) -> None:
        self.llm = LLM(model)

    @daft.method.batch(return_dtype=ANSWER, unnest=True, batch_size=WHOLE_COLUMN)
    def answer(self, prompts: daft.Series) -> list[dict[str, object]]:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts.to_pylist()]
        outputs = self.llm.chat(chats, SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)
        return [{"answer": o.outputs[0].text, "cached_tokens": o.num_cached_tokens} for o in outputs]


df = daft.from_pydict({"id": [0, 1, 2], "prompt": [f"{ARTICLE}\n{question}" for question in QUESTIONS]})

answers = Answers(sys.argv[1] if len(sys.argv) > 1 else "models/smollm2-135m-instruct")
df = df.sort("prompt")  # joins all files and partitions into one batch
df = df.select(df["id"], answers.answer(df["prompt"])).sort("id")
for row in df.to_pylist():
    print(f"{row['answer']} ({row['cached_tokens']} tokens of its prompt were computed for another)")
