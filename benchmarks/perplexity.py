"""What precision costs: perplexity of texts in every precision, beside float32's.

    python -m benchmarks.perplexity --model DIR [--texts FILE ...] [--json FILE]

Of each text the first 1,024 tokens are scored, all but the first; shorter texts are left out. A precision's loss is
what its perplexity over all tokens exceeds float32's by, with the standard error over the texts.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from batchllm import LLM
from benchmarks.machine import describe

DOCUMENTS = Path(__file__).resolve().parent.parent / "examples" / "documents"
NUM_TOKENS = 1024
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantize": "int8", "dtype": "float32"},
    "int8, keys and values bfloat16": {"quantize": "int8", "dtype": "bfloat16"},
    "int8, transformers' modules": {"quantize": "int8", "dtype": "float32", "backend": "transformers"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--texts", type=Path, nargs="+", help="the example documents by default")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    paths = args.texts or [path for path in sorted(DOCUMENTS.glob("*.txt")) if "questions" not in path.name]
    losses: dict[str, list[float]] = {}
    for name in PRECISIONS:
        losses[name] = negative_logprobs(args.model, name, paths)
        if (num_texts := len(losses[name])) < 2:
            parser.error(f"--texts: expected at least two texts of {NUM_TOKENS:,} tokens or more, got {num_texts}")
    figures = {name: compared(of_texts, losses["float32"]) for name, of_texts in losses.items()}
    print(f"{describe()}; {len(losses['float32'])} texts of {NUM_TOKENS} tokens")
    for name, of_precision in figures.items():
        print("{:32} {perplexity:8.3f}   {percent:+6.2f} % (standard error {error:.2f})".format(name, **of_precision))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


def negative_logprobs(model: Path, precision: str, paths: list[Path]) -> list[float]:
    """Of each text that is long enough, the mean over its tokens."""
    llm = LLM(model, **PRECISIONS[precision], kv_cache_tokens=8 * NUM_TOKENS)
    texts = [ids for ids in llm.tokenize([path.read_text() for path in paths]) if len(ids) >= NUM_TOKENS]
    return [math.log(perplexity) for perplexity in llm.perplexity([ids[:NUM_TOKENS] for ids in texts])]


def compared(of_texts: list[float], of_float32: list[float]) -> dict[str, float]:
    more = [100 * (mine - theirs) for mine, theirs in zip(of_texts, of_float32, strict=True)]
    mean = statistics.fmean(more)
    return {
        "perplexity": math.exp(statistics.fmean(of_texts)),
        "percent": 100 * math.expm1(mean / 100),
        "error": statistics.stdev(more) / math.sqrt(len(more)),
    }


if __name__ == "__main__":
    main()
