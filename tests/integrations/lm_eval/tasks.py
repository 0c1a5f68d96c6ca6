"""Tasks of the harness made here from a file of questions and a yaml."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = ["salt", "snow", "river", "stone", "lamp", "bread", "wolf", "glass", "paper", "storm"]
NUM_QUESTIONS, NUM_SHOTS = 20, 3
MULTIPLE_CHOICE = """
output_type: multiple_choice
doc_to_text: "Q: {{question}}\\nA:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
LETTERS = """
output_type: multiple_choice
doc_to_text: "{{question}} A {{choices[0]}} B {{choices[1]}} C {{choices[2]}} D {{choices[3]}}. It is"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""
GENERATION = """
output_type: generate_until
doc_to_text: "Q: {{question}}\\nA:"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n", "e s"], max_gen_toks: 12, do_sample: false, temperature: 0.0}
metric_list: [{metric: exact_match}]
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
LAST_WORD = """
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{choices[answer]}}"
metric_list: [{metric: perplexity}, {metric: acc}]
"""
TASKS = {
    "choice": MULTIPLE_CHOICE,
    "letters": LETTERS,
    "generation": GENERATION,
    "rolling": ROLLING,
    "last_word": LAST_WORD,
}
DATA = "dataset_path: json\ndataset_kwargs: {{data_files: {files}, cache_dir: {directory}}}\ntest_split: test\n"
SHOTS = "num_fewshot: {num_shots}\nfewshot_split: train\nfewshot_config: {{sampler: {sampler}}}\n"


def write_tasks(directory: Path, sampler: str = "first_n") -> Path:
    """Every task of TASKS, on the same questions: 20 to be answered, and as many to be shown before them."""
    generator = random.Random(0)

    def question(number: int) -> dict[str, object]:
        choices = [" ".join(generator.sample(WORDS, generator.randint(1, 3))) for _ in range(4)]
        text = " ".join(generator.choices(WORDS, k=generator.randint(3, 120)))
        return {
            "question": f"What is {number} of {' and '.join(generator.sample(WORDS, 2))}?",
            "choices": choices,
            "answer": generator.randrange(4),
            "text": text,
        }

    files = {}
    for split in ("train", "test"):
        files[split] = str(directory / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(question(i)) + "\n" for i in range(NUM_QUESTIONS)))
    for name, settings in TASKS.items():
        data = DATA.format(files=json.dumps(files), directory=directory)
        shots = "" if name == "rolling" else SHOTS.format(num_shots=NUM_SHOTS, sampler=sampler)
        (directory / f"{name}.yaml").write_text(f"task: {name}\n{data}{shots}{settings}")
    return directory
