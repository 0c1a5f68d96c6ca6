"""lm-evaluation-harness by our engine and by its own `hf` model: a few-shot task with four choices.

    make build/integrations/lm_eval/installed
    build/integrations/lm_eval/bin/python -m benchmarks.bench_lm_eval --model DIR [--hf-questions 20] [--json FILE]

How a passage goes on is asked 200 times, 5 answered questions before each: the same ones (first_n), or others each time
(random, the harness's default). Seconds are those of `simple_evaluate`, its own work included, with the model loaded.
`hf` runs with the fastest of some batch sizes, on the first questions only, once before ours and once after. What its
model would take for all is extrapolated; the harness's own seconds are those that were measured with ours. The scores
of these questions must be equal before anything of ours is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import lm_eval
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from batchllm.integrations.lm_eval import BatchLLM
from benchmarks.machine import describe

DOCUMENTS = Path(__file__).resolve().parent.parent / "examples" / "documents"
PASSAGE_WORDS, ANSWER_WORDS = 21, 3
NUM_SHOTS, POOL = 5, 100  # shown before a question, out of so many
BATCH_SIZES = (1, 4, 16)  # of hf, each tried on TRIED questions
TRIED = 4
TOLERANCES = {"float32": 2e-3, "bfloat16": 0.6}  # of a log-probability of a choice
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {files}, cache_dir: {directory}}}
test_split: test
fewshot_split: train
num_fewshot: {num_shots}
fewshot_config: {{sampler: {sampler}}}
output_type: multiple_choice
doc_to_text: "{{{{passage}}}}\\nGoes on with:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
SAMPLERS = {"first_n": "first_n", "random": "default"}  # by what they do, the harness's names


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--hf-questions", type=int, default=10, help="that hf answers, twice; its time is extrapolated")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--dtype", choices=TOLERANCES, default="float32")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args(arguments)
    hf = get_model("hf")(pretrained=str(args.model), dtype=args.dtype, device="cpu", batch_size=1)
    ours = BatchLLM(args.model, dtype=args.dtype, device="cpu")
    print(f"{describe()}; {args.dtype}; {args.questions} questions, of which hf answers {args.hf_questions}")
    figures = {}
    with tempfile.TemporaryDirectory() as directory:
        write_tasks(Path(directory), args.questions)
        hf.batch_size_per_gpu = fastest_batch_size(hf, Path(directory))
        for sampler in args.samplers:
            figures[sampler] = compared(hf, ours, Path(directory), sampler, args)
            print(
                "{:8} hf {hf_s:7.1f} s (batch size {hf_batch_size}, extrapolated from {hf_questions} questions), ours "
                "{ours_s:6.1f} s: {ratio:.2f}x; {harness_s:.1f} s of either are the harness's; {prompt_tokens:,} "
                "prompt tokens, {computed_prompt_tokens:,} computed".format(sampler, **figures[sampler])
            )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


def write_tasks(directory: Path, num_questions: int) -> None:
    """A yaml for each sampler, on the same questions."""
    paths = [path for path in sorted(DOCUMENTS.glob("*.txt")) if "questions" not in path.name]
    words = " ".join(path.read_text() for path in paths).split()
    size = PASSAGE_WORDS + ANSWER_WORDS
    passages = [words[begin : begin + size] for begin in range(0, len(words) - size, size)]
    if len(passages) < POOL + num_questions:
        raise SystemExit(f"the documents have passages for {len(passages) - POOL} questions, not {num_questions}")
    generator = random.Random(0)
    generator.shuffle(passages)
    ends = [" ".join(passage[PASSAGE_WORDS:]) for passage in passages]

    def question(passage: list[str], end: str) -> dict[str, Any]:
        choices = [end, *generator.sample([other for other in ends if other != end], 3)]
        generator.shuffle(choices)
        return {"passage": " ".join(passage[:PASSAGE_WORDS]), "choices": choices, "answer": choices.index(end)}

    questions = [question(passage, end) for passage, end in zip(passages, ends, strict=True)]
    splits = {"train": questions[:POOL], "test": questions[POOL : POOL + num_questions]}
    files = {split: str(directory / f"{split}.jsonl") for split in splits}
    for split, lines in splits.items():
        Path(files[split]).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, sampler in SAMPLERS.items():
        task = TASK.format(
            name=name, files=json.dumps(files), directory=directory, num_shots=NUM_SHOTS, sampler=sampler
        )
        (directory / f"{name}.yaml").write_text(task)


def fastest_batch_size(hf: Any, directory: Path) -> int:
    seconds = {}
    for hf.batch_size_per_gpu in BATCH_SIZES:
        seconds[hf.batch_size_per_gpu] = evaluated(hf, directory, "first_n", range(TRIED)).model_s
    return min(seconds, key=lambda size: seconds[size])


def compared(hf: Any, ours: BatchLLM, directory: Path, sampler: str, args: argparse.Namespace) -> dict[str, Any]:
    """Raises SystemExit where a score differs."""
    first, tolerance = range(args.hf_questions), TOLERANCES[args.dtype]
    before = evaluated(hf, directory, sampler, first)
    check(evaluated(ours, directory, sampler, first).scores, before.scores, tolerance)
    mine = evaluated(ours, directory, sampler, range(args.questions))
    stats = ours.llm.stats
    check(mine.scores[: args.hf_questions], before.scores, tolerance)
    after = evaluated(hf, directory, sampler, first)
    hf_model_s = (before.model_s + after.model_s) / 2 * args.questions / args.hf_questions
    hf_s = mine.harness_s + hf_model_s
    return {
        "hf_s": hf_s,
        "hf_measured_s": [before.model_s, after.model_s],
        "hf_batch_size": hf.batch_size_per_gpu,
        "hf_questions": args.hf_questions,
        "questions": args.questions,
        "ours_s": mine.harness_s + mine.model_s,
        "harness_s": mine.harness_s,
        "ratio": hf_s / (mine.harness_s + mine.model_s),
        **{name: stats[name] for name in ("prompt_tokens", "computed_prompt_tokens")},
    }


@dataclass
class Evaluated:
    model_s: float  # in the calls of the model
    harness_s: float  # around them
    scores: list[list[float]]  # of each question the log-probabilities of its choices


def evaluated(model: Any, directory: Path, task: str, questions: range) -> Evaluated:
    manager = TaskManager(include_path=str(directory), include_defaults=False)
    ask, model_s = model.loglikelihood, 0.0

    def timed(requests: list[Any]) -> list[tuple[float, bool]]:
        nonlocal model_s
        asked_at = time.perf_counter()
        answers = ask(requests)
        model_s += time.perf_counter() - asked_at
        return answers

    model.loglikelihood = timed
    start = time.perf_counter()
    try:
        results = lm_eval.simple_evaluate(
            model,
            tasks=[task],
            samples={task: list(questions)},
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=True,
        )
    finally:
        del model.loglikelihood
    total_s = time.perf_counter() - start
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    scores = [[logprob for logprob, _ in sample["filtered_resps"]] for sample in samples]
    return Evaluated(model_s, total_s - model_s, scores)


def check(ours: list[list[float]], theirs: list[list[float]], tolerance: float) -> None:
    pairs = [pair for mine, their in zip(ours, theirs, strict=True) for pair in zip(mine, their, strict=True)]
    error = max(abs(mine - their) for mine, their in pairs)
    if not error <= tolerance:
        raise SystemExit(f"a score of ours is {error:.3g} from that of hf")


if __name__ == "__main__":
    main()
