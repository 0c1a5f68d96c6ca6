"""A job cut into parcels: every line in one, and what a replica reads is what was packed."""

import numpy as np
import pytest

import batchllm_ext as ext
from batchllm.estimate.roofline import DEVICES
from batchllm.jobs.job_prompts import JobPrompts
from batchllm.jobs.line import CHAT, COMPLETION, SCORE, AnswerForm, BatchRequest
from batchllm.jobs.parcels import pack_lines, parcels_of, tokenized_job, unpack_lines
from batchllm.jobs.reading import TokenizedLine
from batchllm.models.config import ModelConfig
from batchllm.requests import RequestLimits
from batchllm.sampling_params import SamplingParams, StructuredOutputsParams
from tests.jobs.plan_jobs import write_config

LIMITS = RequestLimits(vocab_size=1000, max_model_len=64, page_size=16, kv_cache_tokens=4096)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig.from_directory(write_config(tmp_path_factory.mktemp("model")))


def prompts_of(lines: list[TokenizedLine]) -> JobPrompts:
    prompts = JobPrompts()
    for line in lines:
        prompts.add(line)
    return prompts


def line(number: int, token_ids: list[list[int]], params: SamplingParams) -> TokenizedLine:
    kind = (CHAT, COMPLETION, SCORE)[number % 3]
    return TokenizedLine(
        BatchRequest(number, f"東京 {number}", kind, "m" if number % 2 else None, (), params),
        token_ids,
        [params] * len(token_ids),
    )


def test_a_replica_reads_what_was_packed() -> None:
    grammar = StructuredOutputsParams(json={"type": "object"})
    lines = [
        line(1, [[5, 6], [7]], SamplingParams(temperature=0, max_tokens=3)),
        line(2, [[2**31 - 1]], SamplingParams(stop=["a", "b"], logit_bias={3: 1.5}, seed=2**40)),
        line(3, [[1]], SamplingParams(structured_outputs=grammar, n=2)),
        line(4, [[1]], SamplingParams(temperature=0, max_tokens=3)),
    ]
    lines[0].params[1] = SamplingParams(temperature=0, max_tokens=3, seed=7)
    lines[1].request.form = AnswerForm(echo=True)
    read = unpack_lines(pack_lines(prompts_of(lines), [3, 0, 1, 2]))
    assert read == [lines[at] for at in (3, 0, 1, 2)]
    assert all(found.request.kind is lines[at].request.kind for found, at in zip(read, (3, 0, 1, 2), strict=True))
    assert read[0].params[0] is read[1].params[0] is read[1].request.params  # made once


def test_the_planner_sees_a_request_for_each_completion() -> None:
    lines = [
        line(4, [[5, 6, 7], [8]], SamplingParams(n=2, max_tokens=9)),
        line(9, [[5, 6]], SamplingParams(max_tokens=None)),
    ]
    job = tokenized_job(prompts_of(lines), LIMITS)
    assert job.line_numbers.tolist() == [4, 9]
    assert job.line_indptr.tolist() == [0, 4, 5]
    assert [job.prompt(i).tolist() for i in range(5)] == [[5, 6, 7], [5, 6, 7], [8], [8], [5, 6]]
    assert job.max_output_tokens.tolist() == [9, 9, 9, 9, 62]


def test_every_line_is_in_one_parcel_beside_those_it_shares_with(model: ModelConfig) -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 1000, 40).tolist() for _ in range(30)]
    lines = [
        line(number + 1, [documents[number % 30] + rng.integers(1, 1000, 5).tolist()], SamplingParams(max_tokens=4))
        for number in range(600)
    ]
    job = tokenized_job(prompts_of(lines), LIMITS)
    parcels = parcels_of(job, model, DEVICES["h100"], 3)
    assert sorted(at for parcel in parcels for at in parcel.tolist()) == list(range(600))
    pieces = sum(len({at % 30 for at in parcel.tolist()}) for parcel in parcels)
    assert pieces <= 30 + len(parcels)  # a document is in a second parcel only where one ends within it
    computed = 0
    for parcel in parcels:
        rows = [job.prompt(at) for at in parcel]
        indptr = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
        computed += ext.PrefixTrie(np.concatenate(rows), indptr, drop_last=1).num_tokens
    assert computed <= 30 * 40 + 600 * 4 + 40 * len(parcels)


def test_nothing_is_no_parcel(model: ModelConfig) -> None:
    assert parcels_of(tokenized_job(JobPrompts(), LIMITS), model, DEVICES["h100"], 2) == []
