"""The reproduction's jobs share what they say, ours finds all of it, and the page says what its tables say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import batchllm_ext as ext
from batchllm.estimate.simulate import Policy, simulate
from benchmarks.conversation_trace import SLICE, Trace, read_trace
from benchmarks.paper import report, sharing, trace, workloads

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def conversations() -> Trace:
    return read_trace(SLICE)


@pytest.mark.parametrize(("degree", "prefix", "own"), [(2, 300, 50), (16, 200, 20), (7, 100, 1)])
def test_a_two_level_job_has_groups_of_its_degree(degree: int, prefix: int, own: int) -> None:
    job = workloads.two_level(requests=degree * 30, degree=degree, prefix=prefix, own=own, output=9)
    prompts = job.tokens.reshape(degree * 30, prefix + own)
    groups, readers = np.unique(prompts[:, :prefix], axis=0, return_counts=True)
    assert len(groups) == 30
    assert (readers == degree).all()
    assert len(np.unique(prompts, axis=0)) == degree * 30
    group_of_row = np.unique(prompts[:, :prefix], axis=0, return_inverse=True)[1].reshape(-1)
    assert (np.diff(group_of_row) == 0).mean() < 0.5, "shuffled"
    assert (job.output_tokens == 9).all()


def test_half_of_the_mixed_groups_are_decode_heavy() -> None:
    job = workloads.two_kinds_of_groups(is_shuffled=True)
    ratio = job.output_tokens / np.diff(job.indptr)
    assert 1500 < (ratio[:3200] > 0.4).sum() < 1700, "shuffled"
    assert ((ratio > 0.4).sum(), (ratio < 0.01).sum()) == (3200, 3200)
    segments = ext.choose_segments(sharing.trie_of(job), reader_cost=2.0)
    assert sorted(set(segments.token_end.tolist())) == [400, 3600]
    assert (segments.num_readers == 16).all()


def test_three_level_jobs_are_three_levels_deep_and_gain_by_it() -> None:
    for seed in range(3):
        trie = sharing.trie_of(workloads.three_level(100, seed))
        segments = ext.choose_segments(trie)
        parent = segments.parent
        depth = [1 + (parent[s] >= 0) + (parent[s] >= 0 and parent[parent[s]] >= 0) for s in range(len(parent))]
        assert max(depth) == 3
        assert segments.saved_tokens > ext.choose_segments(trie, 1).saved_tokens
        assert segments.saved_tokens == segments.prompt_tokens - trie.num_requests - trie.num_tokens


def test_log_normal_lengths_have_their_median_spread_and_bound() -> None:
    lengths = workloads.log_normal_lengths(20_000, median=150, sigma=1, bound=2048)
    assert (lengths.dtype, lengths.min() >= 1, lengths.max()) == (np.int32, True, 2048)
    assert abs(np.median(lengths) - 150) < 5
    assert abs(np.log(lengths).std() - 1) < 0.03


def test_ours_saves_the_exact_bound_of_the_trace(conversations: Trace) -> None:
    job = workloads.of_trace(conversations)
    trie = sharing.trie_of(job)
    bound = trace.exact_bound(conversations)
    assert ext.choose_segments(trie).saved_tokens == bound > 0.13 * len(job.tokens)
    default = ext.choose_segments(trie, reader_cost=2.0)
    assert bound - default.saved_tokens < 0.001 * len(job.tokens)
    unlimited = simulate(job, Policy.BATCHLLM, kv_tokens=1 << 30, reader_cost=0.0)
    assert unlimited.prompt_tokens - unlimited.computed_prompt_tokens == bound


@pytest.mark.parametrize("percent", [10, 25, 50, 100])
def test_no_policy_saves_more_of_the_trace_than_ours(conversations: Trace, percent: int) -> None:
    job = workloads.of_trace(conversations)
    kv_tokens = workloads.working_set_tokens(job) * percent // 100
    computed = {policy: simulate(job, policy, kv_tokens=kv_tokens).computed_prompt_tokens for policy in Policy}
    assert computed[Policy.BATCHLLM] == min(computed.values()), computed
    assert computed[Policy.NONE] == len(job.tokens) > computed[Policy.LRU]


def test_the_microbenchmark_saves_its_ideal_share_where_lru_does_not() -> None:
    job = workloads.two_level(requests=1600, degree=16, prefix=2000, own=200, output=20)
    ideal = 100 * 15 / 16 * 2000 / 2200
    saved = sharing.saved_by_policy(job, kv_tokens=50_000)
    assert abs(saved["ours"] - ideal) < 0.01
    assert saved["LRU"] < ideal / 2
    assert saved["LRU"] < saved["LRU, sorted"] <= saved["ours"]


def test_timing_compares_equal_choices() -> None:
    job = workloads.two_level(requests=64, degree=8, prefix=50, own=9, output=1)
    row = sharing.time_both("small", job, reported_s=1.0, repeats=1)
    assert row["saved"] == pytest.approx(100 * 7 / 8 * 50 / 59, abs=0.01)
    assert row["plain Python s"] > row["ours ms"] / 1e3 > 0


def test_the_page_shows_what_its_tables_hold(tmp_path: Path) -> None:
    tables = {path.stem: report.read_csv(path) for path in RESULTS.glob("*.csv")}
    report.write_page(tables, tmp_path)
    assert (tmp_path / "README.md").read_text() == (RESULTS / "README.md").read_text()


def test_tables_survive_their_files(tmp_path: Path) -> None:
    rows: list[sharing.Row] = [{"a b": 1, "c": 2.5, "d": "x, y"}, {"a b": 1_000_000, "c": 3.0, "d": "5x"}]
    report.write_csv(rows, tmp_path / "t.csv")
    assert report.read_csv(tmp_path / "t.csv") == rows
    assert report.markdown_table(rows).splitlines() == [
        "| a b | c | d |",
        "| --: | --: | --- |",
        "| 1 | 2.5 | x, y |",
        "| 1,000,000 | 3.0 | 5x |",
    ]
