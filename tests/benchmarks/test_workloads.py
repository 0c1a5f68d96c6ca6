"""The benchmark jobs are the same everywhere; otherwise times of different machines could not be compared."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from batchllm.jobs.line import BatchRequest
from benchmarks.workloads import WORKLOADS, write_workload
from tests.jobs.batch_lines import read_source

DIGESTS = {
    "W1": "ec47bf027a60a70f",
    "W2": "19e36576fc8353c7",
    "W3": "1e2f23782f2ade1f",
    "W4": "f87a90e657d56701",
    "W5": "32fdf9a06ab28b5f",
    "W1x2": "309399a2a5da1d40",
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_fixed_to_the_token(name: str) -> None:
    digest = hashlib.sha256()
    for row in WORKLOADS[name].rows():
        digest.update(np.array([*row["prompt_token_ids"], row["max_tokens"], row["group"]], np.int32).tobytes())
    assert digest.hexdigest()[:16] == DIGESTS[name]


def test_a_group_shares_its_prefix_and_nothing_more() -> None:
    for workload in WORKLOADS.values():
        shared = workload.system + workload.prefix
        prompts: dict[int, list[tuple[int, ...]]] = {}
        for row in workload.rows():
            prompts.setdefault(row["group"], []).append(tuple(row["prompt_token_ids"]))
        assert [len(group) for group in prompts.values()] == [workload.readers] * workload.groups
        for group in prompts.values():
            assert len({prompt[:shared] for prompt in group}) == 1
            assert len({prompt[: shared + 2] for prompt in group}) == workload.readers
            assert {len(prompt) for prompt in group} == {shared + workload.own}
        assert len({group[0][: workload.system + 2] for group in prompts.values()}) == workload.groups


def test_a_workload_as_a_job_file_has_the_same_requests(tmp_path: Path) -> None:
    lines = read_source(write_workload("W3", tmp_path, batch=True))
    expected = [([row["prompt_token_ids"]], row["max_tokens"]) for row in WORKLOADS["W3"].rows()]
    assert [(line.prompts, line.params.max_tokens) for line in lines if isinstance(line, BatchRequest)] == expected
