"""DataTrove's documents as one job, between a writer and a reader: python examples/datatrove_job.py [MODEL [OUT]]

Needs `pip install datatrove==0.10.1 orjson` and `pip install '.[data]'`.
"""

import sys
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import JsonlWriter

from batchllm import run_job

ASK = "Answer with one word. Is this text about an island?\n\n{{ text }}"
TEXTS = {"iceland": "Iceland lies in the North Atlantic.", "bhutan": "Bhutan lies in the Himalayas."}


def row(self: JsonlWriter, document: Document) -> dict[str, Any]:
    return {"custom_id": document.id, "text": document.text}


model = sys.argv[1] if len(sys.argv) > 1 else "models/smollm2-135m-instruct"
out = Path(sys.argv[2] if len(sys.argv) > 2 else "out/datatrove")

documents = [Document(text=text, id=name) for name, text in TEXTS.items()]
# A gzip file contains the time of writing, so a new one would count as another job.
write = JsonlWriter(str(out / "job"), compression=None, adapter=row)
LocalPipelineExecutor([documents, write], logging_dir=str(out / "logs"), skip_completed=False).run()

# The same as `batchllm run`, which may also run as the next job of a queue.
(out / "answers").mkdir(exist_ok=True)
job, answers = out / "job/00000.jsonl", out / "answers/answers.parquet"
run_job(job, answers, model, template=ASK, body='{"max_tokens": 8, "temperature": 0}', resume=True)

for document in ParquetReader(str(out / "answers"), glob_pattern="*.parquet", id_key="custom_id")():
    print(document.id, "->", document.text)
