"""A plan packed for a GPU: its arrays, the padding after them, and what does not fit.

tests/simt runs kernels on packed plans.
"""

import re

import numpy as np
import pytest

import batchllm_ext
from tests.cases import ATTENTION_CASES, Case, Request, decodes, prefix
from tests.packed_plan import packed_arrays
from tests.simt.backend import supports

NUM_PAGES = 1000
GARBAGE = 0x7F7F7F7F


def plan_of(case: Case, **options) -> batchllm_ext.AttentionPlan:
    return batchllm_ext.plan_attention(**case.make_inputs().plan_arguments, num_threads=2, **options)


def packed(layout: batchllm_ext.PlanLayout, plan: batchllm_ext.AttentionPlan) -> dict[str, np.ndarray]:
    """The arrays of the buffer, a struct per row."""
    buffer = np.full(layout.num_ints, GARBAGE, np.int32)
    layout.pack(plan, buffer)
    return packed_arrays(layout, buffer)


@pytest.mark.parametrize("case", [case for case in ATTENTION_CASES if supports(case)], ids=str)
def test_a_layout_of_a_plan_holds_its_arrays_and_nothing_else(case: Case):
    plan = plan_of(case, share="always")
    arrays = packed(batchllm_ext.PlanLayout(plan, NUM_PAGES), plan)
    assert {name: len(array) for name, array in arrays.items()}.items() <= plan.sizes.items()
    for name, buffer in {
        "num_item_rows": "rows",
        "num_pieces": "pieces",
        "num_page_ids": "page_ids",
        "num_merged_rows": "merge_rows",
    }.items():
        assert (arrays[name] == plan.buffers[buffer].reshape(arrays[name].shape)).all()
    # Tiles take the packed rows of every item, both kinds in the items' order.
    group_size = case.num_qo_heads // case.num_kv_heads
    wide, narrow = (
        [(row_begin, begin, end) for row_begin, begin, end, *_ in arrays[name].tolist()]
        for name in ("num_wide_tiles", "num_narrow_tiles")
    )
    whole = [(begin, (end - begin) * group_size) for begin, end, *_ in plan.buffers["items"].tolist()]
    for tiles in (wide, narrow):
        first = [row for row, begin, _ in tiles if begin == 0]
        assert first == [row for row, _ in whole if row in first]
    assert sorted(row for row, begin, _ in wide + narrow if begin == 0) == sorted(row for row, _ in whole)
    assert sum(end - begin for _, begin, end in wide + narrow) == sum(size for _, size in whole)
    assert all(16 < end - begin <= 128 for _, begin, end in wide)
    assert all(0 < end - begin <= 16 for _, begin, end in narrow)


def test_behind_a_smaller_plan_tiles_and_merges_are_empty():
    large = plan_of(Case("large", [*decodes(prefix(100), [9] * 40), Request((), 300, 300)]), share="always")
    small = plan_of(Case("small", decodes(prefix(50), [3, 4])), share="always")
    layout = batchllm_ext.PlanLayout(small, NUM_PAGES, **large.sizes)
    assert layout.sizes == large.sizes
    assert layout.has_room_for(large)
    assert layout.has_room_for(small)
    packed(layout, large)
    arrays = packed(layout, small)
    for name, values in arrays.items():
        behind = values[small.sizes[name] :]
        assert len(behind) > 0
        if name.endswith("_tiles"):
            assert (behind == 0).all()
        elif name == "num_merged_rows":
            assert (behind == (-1, 0, 0)).all()
        else:
            assert (behind == GARBAGE).all()


def test_what_there_is_no_room_for_is_named():
    small, large = (plan_of(Case("room", decodes(prefix(50), [3] * readers))) for readers in (2, 30))
    layout = batchllm_ext.PlanLayout(small, NUM_PAGES)
    buffer = np.zeros(layout.num_ints, np.int32)
    assert not layout.has_room_for(large)
    with pytest.raises(ValueError, match=r"^plan: num_rows is 30, but the layout has room for 2$"):
        layout.pack(large, buffer)
    few_pages = batchllm_ext.PlanLayout(small, 2)
    with pytest.raises(ValueError, match=r"^plan: expected page ids in \[0, 2\), got \d+$"):
        few_pages.pack(small, buffer)
    with pytest.raises(TypeError, match=r"^tiles: expected a name of AttentionPlan.sizes$"):
        batchllm_ext.PlanLayout(small, NUM_PAGES, tiles=3)


def test_a_layout_is_for_the_heads_of_its_plan():
    plan = plan_of(Case("heads", decodes(prefix(50), [3, 4])))
    layout = batchllm_ext.PlanLayout(plan, NUM_PAGES)
    for options in ({"num_kv_heads": 4}, {"head_dim": 128}, {"page_size": 4}, {"window_left": 9}):
        other = plan_of(Case("heads", decodes(prefix(50), [3, 4]), **options))
        with pytest.raises(ValueError, match=r"^plan: expected the heads, head_dim, page_size and window_left of"):
            layout.pack(other, np.zeros(layout.num_ints, np.int32))
    with pytest.raises(ValueError, match=r"^head_dim: expected 64, 96, 128 or 256 on a GPU, got 80$"):
        batchllm_ext.PlanLayout(plan_of(Case("heads", [Request((), 3)], head_dim=80)), NUM_PAGES)
    for name in ("num_wide_tiles", "num_narrow_tiles"):
        with pytest.raises(ValueError, match=rf"^{name}: expected at most 1073741823, got 1073741824$"):
            batchllm_ext.PlanLayout(plan, NUM_PAGES, **{name: 2**30})


def test_the_buffer_is_the_layouts():
    plan = plan_of(Case("buffer", decodes(prefix(50), [3, 4])))
    layout = batchllm_ext.PlanLayout(plan, NUM_PAGES)
    num_ints = layout.num_ints
    read_only = np.zeros(num_ints, np.int32)
    read_only.flags.writeable = False
    for buffer, message in (
        (np.zeros(num_ints - 1, np.int32), f"num_ints is {num_ints - 1}, but the layout has {num_ints}"),
        (np.zeros((1, num_ints), np.int32), "expected 1 dimension, got 2"),
        (np.zeros(2 * num_ints, np.int32)[::2], "expected stride 1 in its last dimension, got 2"),
        (read_only, "expected a writable tensor, got a read-only one"),
    ):
        with pytest.raises(ValueError, match=f"^buffer: {re.escape(message)}$"):
            layout.pack(plan, buffer)
    with pytest.raises(TypeError, match=r"^buffer: expected int32, got int64$"):
        layout.pack(plan, np.zeros(num_ints, np.int64))
