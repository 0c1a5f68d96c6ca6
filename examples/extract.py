"""Extracts facts from texts into a table, by a JSON schema: python examples/extract.py [MODEL [OUT.parquet]]

Needs `pip install '.[data]'` and `pip install --no-deps xgrammar apache-tvm-ffi`.
"""

import json
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from batchllm import run_job

TEXTS = ["Ada Lovelace was born in London in 1815.", "Alan Turing was born in London in 1912."]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 40}, "born": {"type": "integer"}},
    "required": ["name", "born"],
}

model = sys.argv[1] if len(sys.argv) > 1 else "models/smollm2-135m-instruct"
out = Path(sys.argv[2] if len(sys.argv) > 2 else "out/facts.parquet")
out.parent.mkdir(parents=True, exist_ok=True)
body = {
    "temperature": 0,
    "max_tokens": 120,
    "response_format": {"type": "json_schema", "json_schema": {"name": "fact", "schema": SCHEMA}},
}
with tempfile.TemporaryDirectory() as directory:
    table = Path(directory) / "texts.jsonl"
    table.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    ask = "Who is this about, and when were they born? Answer in JSON.\n\n{{ text }}"
    run_job(table, out, model, template=ask, body=json.dumps(body), overwrite=True, ordered=True)
for text in pq.read_table(out)["text"].to_pylist():
    print(json.loads(text))
