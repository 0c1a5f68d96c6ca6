"""The simulation of replicas counts what they would compute."""

import numpy as np

import batchllm_ext as ext
from benchmarks.clusters import QUESTION, REPLICAS, SYSTEM, documents_job, simulate
from benchmarks.conversation_trace import SLICE, read_trace


def test_the_job_of_documents_is_questions_under_one_system_prompt() -> None:
    job = documents_job(200_000)
    assert 200_000 <= len(job.tokens) == job.indptr[-1]
    prompts = [job.tokens[a:b] for a, b in zip(job.indptr[:-1], job.indptr[1:], strict=True)]
    assert {tuple(prompt[:SYSTEM]) for prompt in prompts} == {tuple(prompts[0][:SYSTEM])}
    assert len({tuple(prompt[:-QUESTION]) for prompt in prompts}) < len(prompts) / 4
    assert job.output_lengths.min() >= 1


def test_more_replicas_compute_more_of_the_same_and_less_than_as_submitted() -> None:
    trace = read_trace(SLICE)
    rows = list(simulate("slice", trace))
    trie = ext.PrefixTrie(trace.tokens, trace.indptr, drop_last=1)
    least = trie.num_tokens + trace.num_requests
    assert [row["replicas"] for row in rows] == list(REPLICAS)
    computed = [row["computed"] for row in rows]
    assert least <= computed[0] < 1.01 * least
    assert computed == sorted(computed)
    assert all(row["computed"] <= row["as submitted"] for row in rows)
    assert all(float(row[name]) >= 1 for row in rows for name in ("longest/mean, planned", "longest/mean, as it came"))
    assert np.all(np.diff([row["model: s"] for row in rows]) <= 0)
