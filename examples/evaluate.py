"""Your own task in lm-evaluation-harness, on our engine: python examples/evaluate.py [MODEL]"""

import json
import sys
import tempfile
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

import batchllm.integrations.lm_eval  # registers the model "batchllm"

QUESTIONS = [
    ("What is the capital of Iceland?", ["Oslo", "Reykjavik", "Dublin", "Bergen"], 1),
    ("How many legs has a spider?", ["four", "six", "eight", "ten"], 2),
    ("Which of these is a metal?", ["iron", "salt", "glass", "paper"], 0),
    ("Which planet is the largest?", ["Mars", "Venus", "Earth", "Jupiter"], 3),
]
TASK = """
task: facts
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS_FILE}}
test_split: test
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""

directory = Path(tempfile.mkdtemp())
lines = [json.dumps({"question": q, "choices": choices, "answer": answer}) for q, choices, answer in QUESTIONS]
(directory / "questions.jsonl").write_text("\n".join(lines))
(directory / "facts.yaml").write_text(TASK.replace("QUESTIONS_FILE", str(directory / "questions.jsonl")))

model = batchllm.integrations.lm_eval.BatchLLM(sys.argv[1] if len(sys.argv) > 1 else "models/smollm2-135m-instruct")
tasks = TaskManager(include_path=str(directory), include_defaults=False)
print(lm_eval.simple_evaluate(model, tasks=["facts"], task_manager=tasks)["results"]["facts"])
