"""What plans for GPUs are predicted to take, on trees of published size, for every GPU that there are numbers of."""

import itertools

import pytest

import batchllm_ext as ext
from tests.cases import Case, Request, decodes, heads, prefix
from tests.trees import HEADS, TREES, tree_case

GPUS = ext.gpu_models()
HEAD_DIMS = (64, 128, 256)
ROUNDING = 1 + 1e-9


def predicted(case: Case, gpu: str) -> dict[str, float]:
    plan = ext.plan_attention(**case.make_plan_arguments(), device=gpu)
    return plan.explain()["predicted_seconds"][GPUS[gpu]["name"]]


@pytest.mark.parametrize("prefill", [False, True], ids=["decode", "prefill"])
@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("tree", TREES)
def test_no_plan_is_predicted_slower_than_a_cascade_or_than_reading_per_request(tree: str, gpu: str, prefill: bool):
    for num_heads, head_dim in itertools.product(HEADS, HEAD_DIMS):
        case = tree_case(tree, num_heads, head_dim, prefill=prefill)
        seconds = predicted(case, gpu)
        for way in ("cascade", "cascade_float32", "per_request"):
            assert seconds["plan"] <= seconds[way] * ROUNDING


def plan_of(case: Case, gpu: str) -> ext.AttentionPlan:
    return ext.plan_attention(**case.make_plan_arguments(), device=gpu)


def test_splits_are_as_few_as_the_whole_gpu_needs():
    """256 readers of 2,048 tokens are 8 tiles for each of 8 KV heads, 64 blocks, and their own parts keep the other
    places busy: no use in cutting the prefix into as many parts as would fill the GPU by themselves."""
    plan = plan_of(Case("split", decodes(prefix(2048), [64] * 256), head_dim=128, **heads(4, 8)), "h100")
    prefix_items = [item for item in plan.buffers["items"] if item[4] < 2048]
    assert len(prefix_items) <= 4 * 8
    assert plan.explain()["partial_bytes"] <= 5 * 256 * 32 * (2 * 128 + 4)


def test_a_single_tile_is_split_until_the_gpu_is_busy():
    plan = plan_of(Case("long", decodes(prefix(65536), [16] * 8), head_dim=128, **heads(4, 8)), "h100")
    assert sum(item[4] < 65536 for item in plan.buffers["items"]) * 8 >= 132


def test_a_short_segment_is_read_with_those_that_follow_it():
    """32 tokens for all and 1,024 for each of 4 groups of 64: the 32 are read four times instead of giving every row
    a third partial state."""
    paths = [(("all", 32), (f"document {i}", 1024)) for i in range(4)]
    requests = [request for path in paths for request in decodes(path, [40] * 64)]
    plan = plan_of(Case("run", requests, head_dim=128, **heads(4, 8)), "h100")
    spans = {(int(item[4]), int(item[5])) for item in plan.buffers["items"]}
    assert all(begin != 0 or end > 32 for begin, end in spans)
    assert (1056, 1096) in spans
    assert plan.explain()["num_shared_segments"] == 5


def test_rows_that_fill_tiles_by_themselves_have_no_partial_states():
    """Ten prefills of 416 rows on a prefix: of each three tiles of 128 rows read it alone, and the 32 rows that each
    has left are three tiles of it instead of ten."""
    plan = plan_of(tree_case("1,10_4096,416", (32, 32), 128, prefill=True), "h100")
    items, rows = plan.buffers["items"], plan.buffers["rows"]
    assert sum(item[5] > 4096 and item[4] == 0 for item in items) == 10 * 3
    assert sum(item[5] == 4096 for item in items) == 3
    assert plan.num_partial_rows == 2 * 10 * 32
    assert {int(row[0]) % 416 for row in rows if row[3] >= 0} == set(range(384, 416))


def test_rows_that_end_inside_a_run_read_it_for_themselves():
    """Some requests stop at the short segment, which the others read on from."""
    requests = [Request((("all", 32),), 8) for _ in range(3)]
    requests += [Request((("all", 32), (f"document {i}", 512)), 8) for i in range(2) for _ in range(32)]
    plan = plan_of(Case("ends", requests, head_dim=128, **heads(4, 8)), "h100")
    assert plan.explain()["num_shared_segments"] == 4 - 1
    own = [item for item in plan.buffers["items"] if (item[4], item[5]) == (0, 40)]
    assert len(own) == 3


@pytest.mark.parametrize(
    ("name", "capability", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", 8, "a100"),
        ("NVIDIA H100 80GB HBM3", 9, "h100"),
        ("NVIDIA H200", 9, "h200"),
        ("NVIDIA L40S", 8, "a100"),
        ("NVIDIA B200", 10, "h100"),
        ("", 7, "a100"),
    ],
)
def test_a_gpu_is_taken_for_the_one_of_its_name_or_else_of_its_generation(name: str, capability: int, expected: str):
    assert ext.nearest_gpu(name, capability) == expected


def test_a_device_is_named_with_those_that_there_are():
    arguments = Case("device", decodes((), [5])).make_plan_arguments()
    with pytest.raises(ValueError, match='device: expected one of "cpu", "cuda", "a100", "h100", "h200", got "h300"'):
        ext.plan_attention(**arguments, device="h300")
    for device, gpu in GPUS.items():
        assert ext.plan_attention(**arguments, device=device).num_threads == gpu["num_multiprocessors"]
    plan = ext.plan_attention(**arguments, device="cuda")
    assert plan.num_threads == GPUS["a100"]["num_multiprocessors"]
    with pytest.raises(ValueError, match='device: expected a GPU, got "cpu"'):
        plan.predict_seconds(flops_per_s=1e12, bytes_per_s=1e12, device="cpu")
