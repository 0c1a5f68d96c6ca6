"""The CUDA attention kernels, executed on the emulator, against the float64 reference.

The planner and the cases are those of the CPU kernels. Checked builds report races, stray and uninitialised reads,
which fails a test wherever attention() is called.
"""

import numpy as np
import pytest

from tests.cases import ATTENTION_CASES, Case, Request, decodes, heads, prefix
from tests.simt.backend import BUILDS, NUM_MULTIPROCESSORS, Result, attention, rounded, supports
from tests.simt.generated import generated_case
from tests.simt.precision import check

CASES = [case for case in ATTENTION_CASES if supports(case)]
FORESTS = [*range(240), *(pytest.param(number, marks=pytest.mark.full) for number in range(240, 1000))]


def same_bits(a: Result, b: Result) -> bool:
    return np.array_equal(a.out, b.out, equal_nan=True) and np.array_equal(a.lse, b.lse, equal_nan=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_match_the_reference_whatever_thread_runs_first(case: Case, dtype: str):
    if dtype == "float16" and case.score_shift:
        pytest.skip("the scores' size is beyond float16")
    inputs = rounded(case.make_inputs(), dtype)
    results = [
        attention(inputs, dtype=dtype, build=build, order=order)
        for build in BUILDS
        for order in ("ascending", "descending")
    ]
    check(inputs, results[0], dtype)
    assert all(same_bits(results[0], result) for result in results)


@pytest.mark.parametrize("share", ["always", False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_match_the_reference_however_keys_are_shared(case: Case, share: bool | str):
    """Also by plans that were made for the CPU's kernels, whose items are higher than a GPU's tiles."""
    inputs = rounded(case.make_inputs(), "bfloat16")
    for device, num_threads in (("cuda", NUM_MULTIPROCESSORS), ("cpu", 2)):
        result = attention(inputs, build="fast", share=share, device=device, num_threads=num_threads)
        check(inputs, result, "bfloat16")


@pytest.mark.parametrize("number", FORESTS)
def test_kernels_match_the_reference_on_generated_forests(number: int):
    dtype = "float16" if number % 4 == 3 else "bfloat16"
    inputs = rounded(generated_case(number).make_inputs(), dtype)
    share = "always" if number % 2 else True
    options = {"dtype": dtype, "share": share, "num_threads": (1, 2, NUM_MULTIPROCESSORS)[number % 3]}
    fast = attention(inputs, build="fast", order="ascending", **options)
    check(inputs, fast, dtype)
    # A checked run takes three times as long; `make test-full` has one for every forest.
    build = "checked" if number % 3 == 0 else "fast"
    assert same_bits(fast, attention(inputs, build=build, order="descending", **options))


@pytest.mark.full
@pytest.mark.parametrize("number", range(1000))
def test_kernels_match_the_reference_when_threads_are_preempted(number: int):
    inputs = rounded(generated_case(number).make_inputs(), "bfloat16")
    expected = attention(inputs, build="fast")
    for order, seed in (("ascending", 1), ("random", number)):
        result = attention(inputs, build="checked", order=order, seed=seed, preempt_one_in=50)
        assert same_bits(expected, result)


def test_loads_of_matrices_have_no_bank_conflicts():
    for head_dim in (64, 96, 128, 256):
        case = Case(
            "all_tiles",
            [*decodes(prefix(150), [40] * 30), Request((), 100, 100)],
            head_dim=head_dim,
            **heads(4, 1),
        )
        counts = attention(rounded(case.make_inputs(), "bfloat16"), build="fast", share="always").counts
        assert counts.matrix_loads > 0
        assert counts.bank_conflicts == 0


@pytest.mark.parametrize("build", BUILDS)
def test_room_behind_a_plan_is_inert(build: str):
    """A CUDA graph replays tiles and merges for the largest plan that there is room for."""
    inputs = rounded(Case("spare", decodes(prefix(100), [3, 4, 5])).make_inputs(), "bfloat16")
    expected = attention(inputs, build=build, share="always")
    result = attention(inputs, build=build, share="always", spare=5)
    assert same_bits(expected, result)
    assert result.counts.products == expected.counts.products
    assert result.counts.num_wide_tiles == expected.counts.num_wide_tiles + 5
    assert result.counts.num_narrow_tiles == expected.counts.num_narrow_tiles + 5


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("share", ["always", False])
def test_an_lse_that_nobody_wants_is_not_written(share: bool | str, build: str):
    case = Case("no_lse", decodes(prefix(100), [3, 40, 5]), has_sinks=True, **heads(4, 2))
    inputs = rounded(case.make_inputs(), "bfloat16")
    expected = attention(inputs, build=build, share=share)
    result = attention(inputs, build=build, share=share, with_lse=False)
    assert result.lse is None
    np.testing.assert_array_equal(result.out, expected.out)


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_heads_of_a_narrow_tile_are_the_same_bits_however_many_a_block_takes(head_dim: int):
    """Own parts of no whole tile of keys, of one, and of several; all heads, some, and one at a time."""
    own = [1, 15, 16, 17, 32, 33, 64, 100]
    case = Case("heads", decodes(prefix(70), own), page_size=16, head_dim=head_dim, **heads(4, 5))
    inputs = rounded(case.make_inputs(), "bfloat16")
    expected = attention(inputs, share=False, heads_per_block=1)
    assert expected.counts.num_narrow_tiles >= len(own)
    check(inputs, expected, "bfloat16")
    for heads_per_block in (2, 3, 5):
        for build, order in (("fast", "ascending"), ("checked", "descending")):
            result = attention(inputs, share=False, heads_per_block=heads_per_block, build=build, order=order)
            assert same_bits(result, expected)
            assert result.counts.async_copies == expected.counts.async_copies


def test_keys_that_no_row_of_a_tile_sees_are_not_read():
    """200 rows in tiles of 128, 32 keys at a time: of each tile of rows only the keys up to its last one."""
    case = Case("prefill", [Request((), 200, 200)], head_dim=64, **heads(1, 1))
    counts = attention(rounded(case.make_inputs(), "bfloat16"), build="fast", num_threads=1).counts
    row_copies = 2 * 128 * 64 // 8
    key_copies = 2 * (128 + 224) * 64 // 8
    assert (counts.num_wide_tiles, counts.num_narrow_tiles) == (2, 0)
    assert counts.async_copies == row_copies + key_copies


def test_a_nan_reaches_every_row_that_reads_it_and_no_other_request():
    case = Case("nan", decodes(prefix(100), [20, 20, 20, 20]))
    for share in (True, False):
        for in_keys in (True, False):
            inputs = rounded(case.make_inputs(), "bfloat16")
            pages = inputs.k_pages if in_keys else inputs.v_pages
            pages[inputs.arrays["segment_page_ids"][inputs.arrays["segment_page_indptr"][3]], 0] = np.nan  # request 2
            out = attention(inputs, share=share).out
            assert np.isnan(out[2]).all()
            assert np.isfinite(out[[0, 1, 3]]).all()
