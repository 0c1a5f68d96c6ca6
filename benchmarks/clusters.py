"""What a job costs on 1, 8, 64 and 512 replicas: counted from its prefixes, without a model.

    python -m benchmarks.clusters [--trace conversation_trace.jsonl] [--tokens 1e9] [-o docs/results]

Replicas take one parcel after the other, the dearest first (`batchllm.jobs.parcels`). The plan takes every answer to
have as many tokens as the mean one; loads are counted with the lengths that the answers have. Seconds of a load are
those of the roofline model. Writes clusters.csv and clusters.md.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np

import batchllm_ext as ext
from batchllm.estimate.packing import largest_first, pack, replica_loads
from batchllm.estimate.partition import shard_costs
from batchllm.estimate.roofline import DEVICES
from batchllm.estimate.tokenized_job import TokenizedJob
from batchllm.jobs.depth_first import depth_first, run_cuts
from batchllm.jobs.shards import LineSequence, RequestCosts, request_costs
from benchmarks.conversation_trace import SLICE, Trace, read_trace
from benchmarks.paper.hardware import LLAMA_8B
from benchmarks.paper.report import Row, cell, markdown_table, rounded, write_csv

REPLICAS = (1, 8, 64, 512)
DEVICE = DEVICES["a100"]
SYSTEM, DOCUMENT, QUESTION = 500, 2000, 40  # tokens; of a document the median
QUESTIONS = 20  # on a document, in the mean
ANSWER = 128  # tokens, in the median
RUN_TOKENS = 1 << 26  # where runs are merged
TEMPLATE = Path(__file__).parent / "clusters.template.md"


def documents_job(num_tokens: int, seed: int = 0) -> Trace:
    """Questions on documents under one system prompt, shuffled, of at least that many tokens. How many are asked on a
    document is geometric; lengths of documents and answers are log-normal."""
    rng = np.random.default_rng(seed)
    system = rng.integers(0, 100_000, SYSTEM, np.int32)
    documents: list[np.ndarray] = []
    readers: list[int] = []
    planned = 0
    while planned < num_tokens:
        length = int(np.clip(DOCUMENT * rng.lognormal(sigma=0.5), 100, 20_000))
        documents.append(rng.integers(0, 100_000, length, np.int32))
        readers.append(int(rng.geometric(1 / QUESTIONS)))
        planned += readers[-1] * (SYSTEM + length + QUESTION)
    of_request = rng.permutation(np.repeat(np.arange(len(documents)), readers))
    lengths = np.array([SYSTEM + len(document) + QUESTION for document in documents])[of_request]
    indptr = np.concatenate(([0], np.cumsum(lengths)))
    tokens = np.empty(indptr[-1], np.int32)
    for document, begin, end in zip(of_request.tolist(), indptr[:-1].tolist(), indptr[1:].tolist(), strict=True):
        tokens[begin : begin + SYSTEM] = system
        tokens[begin + SYSTEM : end - QUESTION] = documents[document]
        tokens[end - QUESTION : end] = rng.integers(0, 100_000, QUESTION, np.int32)
    outputs = np.clip(ANSWER * rng.lognormal(sigma=1.0, size=len(lengths)), 1, 2048).astype(np.int32)
    return Trace(tokens, indptr, outputs)


class PlannedJob(NamedTuple):
    job: TokenizedJob
    lines: LineSequence
    predicted: RequestCosts  # of answers of the mean length
    actual: RequestCosts
    cpu_s: float  # of planning, all threads together


def plan(trace: Trace) -> PlannedJob:
    begun = time.process_time()
    requests = np.arange(trace.num_requests + 1)
    mean = np.full(trace.num_requests, round(trace.output_lengths.mean()), np.int32)
    job = TokenizedJob(requests[1:], requests, trace.tokens, trace.indptr, mean)
    lines = LineSequence.of(job, depth_first(job))
    predicted = request_costs(job, lines, mean, LLAMA_8B, DEVICE)
    cpu_s = time.process_time() - begun
    return PlannedJob(job, lines, predicted, request_costs(job, lines, trace.output_lengths, LLAMA_8B, DEVICE), cpu_s)


def simulate(name: str, trace: Trace) -> Iterator[Row]:
    job, lines, predicted, actual, cpu_s = plan(trace)
    dearest = (actual.seconds + actual.path_seconds).max()
    own = np.diff(job.indptr)[lines.request] - lines.shared_tokens
    for num_replicas in REPLICAS:
        begun = time.process_time()
        cuts = pack(predicted.seconds, predicted.path_seconds, num_replicas)
        order = largest_first(predicted.seconds, predicted.path_seconds, cuts)
        packing_s = time.process_time() - begun
        loads = {
            kind: replica_loads(shard_costs(costs.seconds, costs.path_seconds, cuts)[order], num_replicas)
            for kind, costs in (("predicted", predicted), ("actual", actual))
        }
        computed = int(own.sum() + lines.shared_tokens[cuts[:-1]].sum())
        submitted = computed_as_submitted(trace, np.diff(cuts)[order])
        yield {
            "job": name,
            "replicas": num_replicas,
            "parcels": len(cuts) - 1,
            "computed": computed,
            "more than on one %": 100 * (computed / own.sum() - 1),
            "as submitted": submitted,
            "times more": submitted / computed,
            "longest/mean, planned": f"{longest_over_mean(loads['predicted']):.3f}",
            "longest/mean, as it came": f"{longest_over_mean(loads['actual']):.3f}",
            "dearest request/mean": f"{dearest / loads['actual'].mean():.3f}",
            "model: s": float(loads["actual"].max()),
            "planning, CPU s": f"{cpu_s + packing_s:.2f}",
        }


def longest_over_mean(loads: np.ndarray) -> float:
    return float(loads.max() / loads.mean())


def computed_as_submitted(trace: Trace, sizes: np.ndarray) -> int:
    """Prompt tokens if the requests were cut into as many parcels of these sizes as they came, each an engine's job
    that shares all it can."""
    ends = np.cumsum(sizes)
    computed = trace.num_requests
    for begin, end in zip(ends - sizes, ends, strict=True):
        indptr = trace.indptr[begin : end + 1]
        prompts = ext.PrefixTrie(trace.tokens[indptr[0] : indptr[-1]], indptr - indptr[0], drop_last=1)
        computed += prompts.num_tokens
    return computed


def merging_s(trace: Trace) -> float:
    """CPU seconds of the order by runs of RUN_TOKENS, which is compared with that of one trie first."""
    requests = np.arange(trace.num_requests + 1)
    job = TokenizedJob(requests[1:], requests, trace.tokens, trace.indptr, trace.output_lengths)
    begun = time.process_time()
    shared_tokens = depth_first(job, RUN_TOKENS).shared_tokens
    cpu_s = time.process_time() - begun
    assert np.array_equal(shared_tokens, depth_first(job).shared_tokens)
    return cpu_s


def description(name: str, trace: Trace) -> Row:
    return {
        "job": name,
        "requests": trace.num_requests,
        "prompt tokens": len(trace.tokens),
        "output tokens": int(trace.output_lengths.sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, default=SLICE, help="default: the 400 requests that are shipped")
    parser.add_argument("--tokens", type=float, default=1e9, help="of the job of documents")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    jobs: list[Row] = []
    rows: list[Row] = []
    for name, make in {
        "conversations": lambda: read_trace(options.trace),
        "documents": lambda: documents_job(int(options.tokens)),
    }.items():
        trace = make()
        jobs.append(description(name, trace))
        for row in simulate(name, trace):
            rows.append(row)
            print(" ".join(f"{key}: {cell(value)};" for key, value in row.items()), flush=True)
    merged = {"runs": len(run_cuts(trace.indptr, RUN_TOKENS)) - 1, "merging_s": f"{merging_s(trace):.0f}"}
    rows = rounded(rows)
    write_csv(rows, options.output / "clusters.csv")
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    values = {"jobs": markdown_table(jobs), "clusters": markdown_table(rows), "peak_gib": f"{peak_gib:.1f}"}
    values |= {"trace": options.trace.name} | merged
    (options.output / "clusters.md").write_text(Template(TEMPLATE.read_text()).substitute(values))


if __name__ == "__main__":
    main()
