"""attention() against the float64 reference, with NaN in every slot that no row may read.

test_isas.py runs this file once for every instruction set.
"""

import mmap

import numpy as np
import pytest

import batchllm_ext
from tests.cases import ATTENTION_CASES, Case, Inputs, Request, decodes, heads, prefix, random_case
from tests.reference import assert_close, attention_reference, from_bf16, to_bf16, tolerance

NAN = float("nan")


def run(
    inputs: Inputs,
    *,
    num_threads: int = 2,
    device: str = "cpu",
    share: bool | str = True,
    run_threads: int = 0,
    **options,
):
    """attention() with outputs that hold NaN before; a plan for `device`, executed by the CPU."""
    plan = batchllm_ext.plan_attention(**inputs.plan_arguments, num_threads=num_threads, device=device, share=share)
    options = {"out": np.full(inputs.q.shape, NAN, np.float32), **inputs.options, **options}
    lse = np.full(inputs.q.shape[:2], NAN, np.float32)
    q, k_pages, v_pages = options.pop("tensors", (inputs.q, inputs.k_pages, inputs.v_pages))
    return batchllm_ext.attention(plan, q, k_pages, v_pages, lse=lse, num_threads=run_threads, **options)


def check(inputs: Inputs, out: np.ndarray, lse: np.ndarray, dtype: str = "float32") -> None:
    expected_out, expected_lse, max_score = attention_reference(inputs)
    assert_close("out", out, expected_out, tolerance(inputs, max_score, dtype))
    assert_close("lse", lse, expected_lse, 1e-5 * (1.0 + max_score / 8.0))


def in_bf16(inputs: Inputs) -> tuple[Inputs, tuple[np.ndarray, ...]]:
    """The inputs as bfloat16 holds them, and the tensors in it."""
    tensors = tuple(to_bf16(x) for x in (inputs.q, inputs.k_pages, inputs.v_pages))
    inputs.q = from_bf16(tensors[0])
    inputs.segment_k = [from_bf16(to_bf16(k)) for k in inputs.segment_k]
    inputs.segment_v = [from_bf16(to_bf16(v)) for v in inputs.segment_v]
    return inputs, tensors


@pytest.mark.parametrize("share", [True, "always", False], ids=["shared", "always_shared", "per_request"])
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
def test_attention_matches_reference(case: Case, share: bool | str):
    """Also by plans that were made for a GPU."""
    inputs = case.make_inputs()
    for device, num_threads in (("cpu", 1), ("cpu", 2), ("cuda", 108)):
        check(inputs, *run(inputs, num_threads=num_threads, device=device, share=share))


@pytest.mark.parametrize("share", ["always", False])
@pytest.mark.parametrize("name", ["tree", "sinks", "rows_that_see_nothing"])
def test_an_lse_that_nobody_wants_is_not_made(name: str, share: bool | str):
    inputs = next(case for case in ATTENTION_CASES if case.name == name).make_inputs()
    plan = batchllm_ext.plan_attention(**inputs.plan_arguments, num_threads=2, share=share)
    tensors = inputs.q, inputs.k_pages, inputs.v_pages
    out, lse = batchllm_ext.attention(plan, *tensors, sinks=inputs.sinks)
    assert lse.shape == out.shape[:2]
    out_alone, no_lse = batchllm_ext.attention(plan, *tensors, sinks=inputs.sinks, lse=None)
    assert no_lse is None
    np.testing.assert_array_equal(out_alone, out)
    window_left = inputs.case.window_left
    _, no_lse = batchllm_ext.attention_ref(*inputs.arrays.values(), *tensors, lse=None, window_left=window_left)
    assert no_lse is None


@pytest.mark.parametrize("seed", range(60))
def test_attention_of_a_random_forest_matches_reference(seed: int):
    inputs = random_case(seed).make_inputs()
    check(inputs, *run(inputs, num_threads=1 + seed % 5, share="always" if seed % 2 else True))


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
def test_native_reference_matches_reference(case: Case):
    inputs = case.make_inputs()
    out, lse = batchllm_ext.attention_ref(
        **inputs.arrays,
        q=inputs.q,
        k_pages=inputs.k_pages,
        v_pages=inputs.v_pages,
        window_left=case.window_left,
        **inputs.options,
    )
    expected_out, expected_lse, max_score = attention_reference(inputs)
    assert_close("out", out, expected_out, 1e-6 * (1.0 + max_score * 1e-7))
    assert_close("lse", lse, expected_lse, 1e-6 * (1.0 + max_score))


@pytest.mark.parametrize("case", ATTENTION_CASES[::3], ids=str)
def test_bfloat16_inputs_are_computed_in_float32_but_for_the_weights(case: Case):
    """Rounded inputs obey the law of float32, of which bfloat16 dot products take weights that are rounded to bfloat16;
    an output in bfloat16 is the float32 one, rounded once."""
    inputs, bits = in_bf16(case.make_inputs())
    out, lse = run(inputs, tensors=bits, dtype="bfloat16")
    check(inputs, out, lse, "bfloat16")
    rounded = np.full(inputs.q.shape, 0x7FC0, np.uint16)
    run(inputs, tensors=bits, dtype="bfloat16", out=rounded)
    assert (rounded == to_bf16(out)).all()


def test_float32_queries_may_meet_bfloat16_pages():
    inputs = next(case for case in ATTENTION_CASES if case.name == "tree").make_inputs()
    inputs.segment_k = [from_bf16(to_bf16(k)) for k in inputs.segment_k]
    inputs.segment_v = [from_bf16(to_bf16(v)) for v in inputs.segment_v]
    tensors = (inputs.q, to_bf16(inputs.k_pages), to_bf16(inputs.v_pages))
    check(inputs, *run(inputs, tensors=tensors, dtype="bfloat16"))


def mixed_case(**options) -> Case:
    requests = [
        *decodes(prefix(700), [1, 40, 300]),
        Request(prefix(700), 90, 50),
        *decodes(prefix(80, "b"), [9] * 20),
    ]
    return Case("mixed", requests, **options)


def test_results_are_bitwise_repeatable_whatever_threads_run_the_plan():
    inputs = mixed_case(num_kv_heads=1).make_inputs()
    for num_threads in (1, 2, 3):
        first = run(inputs, num_threads=num_threads, run_threads=1)
        for run_threads in (1, 2, 5):
            again = run(inputs, num_threads=num_threads, run_threads=run_threads)
            assert all((a == b).all() for a, b in zip(first, again, strict=True))


def test_long_key_ranges_are_split_for_threads():
    inputs = Case("long", [Request((), 3000)], num_qo_heads=1, num_kv_heads=1).make_inputs()
    plans = [batchllm_ext.plan_attention(**inputs.plan_arguments, num_threads=n) for n in (1, 2, 16)]
    assert plans[0].num_items == 1
    assert plans[0].num_partial_rows == 0
    assert 2 <= plans[1].num_items < plans[2].num_items
    for num_threads in (1, 2, 16):
        check(inputs, *run(inputs, num_threads=num_threads))


def test_order_of_requests_changes_nothing_but_rounding():
    case = mixed_case()
    inputs = case.make_inputs()
    out, lse = run(inputs)
    order = np.random.default_rng(0).permutation(len(inputs.spans))
    rows = [np.arange(*inputs.arrays["span_indptr"][span : span + 2]) for span in order]
    links = [np.arange(*inputs.arrays["link_indptr"][span : span + 2]) for span in order]
    for name, values in (("span", rows), ("link", links)):
        counts = np.cumsum([0, *(len(value) for value in values)])
        inputs.arrays[f"{name}_indptr"] = counts.astype(np.int32)
    inputs.arrays["span_begin"] = inputs.arrays["span_begin"][order]
    inputs.arrays["link_segment"] = inputs.arrays["link_segment"][np.concatenate(links)]
    inputs.q = inputs.q[np.concatenate(rows)]
    shuffled_out, shuffled_lse = run(inputs)
    assert_close("out", shuffled_out, out[np.concatenate(rows)], 1e-5)
    assert_close("lse", shuffled_lse, lse[np.concatenate(rows)], 1e-5)


def test_one_request_alone_equals_that_request_in_a_batch():
    case = mixed_case()
    inputs = case.make_inputs()
    out, _ = run(inputs)
    for span in range(len(inputs.spans)):
        alone = case.make_inputs()
        row_begin, row_end = alone.arrays["span_indptr"][span : span + 2]
        link_begin, link_end = alone.arrays["link_indptr"][span : span + 2]
        alone.arrays["span_indptr"] = np.array([0, row_end - row_begin], np.int32)
        alone.arrays["link_indptr"] = np.array([0, link_end - link_begin], np.int32)
        alone.arrays["span_begin"] = alone.arrays["span_begin"][span : span + 1]
        alone.arrays["link_segment"] = alone.arrays["link_segment"][link_begin:link_end]
        alone.q = alone.q[row_begin:row_end]
        assert_close("out", run(alone)[0], out[row_begin:row_end], 1e-5)


def test_a_nan_reaches_every_row_that_reads_it_and_no_other_request():
    case = Case("nan", decodes(prefix(100), [20, 20, 20, 20]))
    for share in (True, False):
        for in_keys in (True, False):
            inputs = case.make_inputs()
            pages = inputs.k_pages if in_keys else inputs.v_pages
            pages[inputs.arrays["segment_page_ids"][inputs.arrays["segment_page_indptr"][3]], 0] = NAN  # request 2
            out, _ = run(inputs, share=share)
            assert np.isnan(out[2]).all()
            assert np.isfinite(out[[0, 1, 3]]).all()


def test_memory_of_an_earlier_call_is_never_read():
    dirty = mixed_case(num_qo_heads=16).make_inputs()
    dirty.v_pages[:] = NAN
    dirty.k_pages[:] = NAN
    for case in (mixed_case(), Case("small", decodes(prefix(90), [3, 4, 5]))):
        assert np.isnan(run(dirty)[0]).all()
        inputs = case.make_inputs()
        check(inputs, *run(inputs))


@pytest.mark.parametrize(
    "readers", [1, 2, 3, 4, 5, 7, 8, 12, 13, 15, 16, 17, 24, 25, 26, 32, 33, 38, 39, 41, 48, 49, 97]
)
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_every_number_of_rows_in_bfloat16(readers: int, head_dim: int):
    """Paths, blocks and register tiles change with the number of rows; keys end anywhere in a tile."""
    case = Case("rows", decodes(prefix(131 + readers), [1 + i % 3 for i in range(readers)]), 3, 3, head_dim=head_dim)
    inputs, tensors = in_bf16(case.make_inputs())
    for share in ("always", False):
        check(inputs, *run(inputs, share=share, tensors=tensors, dtype="bfloat16"), "bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("readers", [2, 24])
def test_denormal_inputs_are_as_good_as_zeros(dtype: str, readers: int):
    """Dot products of bfloat16 flush them, which no tolerance can see; they must not become anything else."""
    inputs = Case("denormals", decodes(prefix(90), [5] * readers)).make_inputs()
    for tensor in (inputs.k_pages, inputs.v_pages):
        tensor[:, :, :, ::3] *= np.float32(1e-40)
    for segments in (inputs.segment_k, inputs.segment_v):
        for segment in segments:
            segment[:, :, ::3] *= np.float32(1e-40)
    tensors = (inputs.q, inputs.k_pages, inputs.v_pages)
    if dtype == "bfloat16":
        inputs, tensors = in_bf16(inputs)
    for share in ("always", False):
        check(inputs, *run(inputs, share=share, tensors=tensors, dtype=dtype), dtype)


def test_a_plan_serves_many_layers():
    case = mixed_case()
    layers = [case.make_inputs(seed) for seed in range(3)]
    for layer in layers[1:]:  # the same pages in every layer
        order = np.argsort(layer.arrays["segment_page_ids"]), layers[0].arrays["segment_page_ids"]
        moved = {"k_pages": np.full_like(layer.k_pages, NAN), "v_pages": np.full_like(layer.v_pages, NAN)}
        for name, pages in moved.items():
            pages[order[1]] = getattr(layer, name)[layer.arrays["segment_page_ids"]]
            setattr(layer, name, pages)
    plan = batchllm_ext.plan_attention(**layers[0].plan_arguments, num_threads=2)
    for layer in layers:
        check(layer, *batchllm_ext.attention(plan, layer.q, layer.k_pages, layer.v_pages, num_threads=2))


def test_page_offsets_are_64_bit():
    """Pages whose first element lies behind 2^31 elements, in memory that is never backed but for what is touched."""
    case = Case("far", decodes(prefix(20), [3, 4]), num_qo_heads=2, num_kv_heads=1)
    inputs = case.make_inputs()
    page = int(np.prod(inputs.k_pages.shape[1:]))
    num_pages = 2**31 // page + 64
    shift = num_pages - len(inputs.k_pages)
    no_reserve = 0x4000
    tensors = [inputs.q]
    for pages in (inputs.k_pages, inputs.v_pages):
        memory = mmap.mmap(-1, 4 * num_pages * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
        far = np.frombuffer(memory, np.float32).reshape(num_pages, *pages.shape[1:])
        far[shift:] = pages
        tensors.append(far)
    inputs.arrays["segment_page_ids"] += shift
    check(inputs, *run(inputs, tensors=tensors))


def test_plan_explains_what_sharing_saves():
    inputs = Case("explain", decodes(prefix(1000), [10] * 8)).make_inputs()
    shared = batchllm_ext.plan_attention(**inputs.plan_arguments, num_threads=1).explain(kv_dtype="bfloat16")
    alone = batchllm_ext.plan_attention(**inputs.plan_arguments, num_threads=1, share=False).explain()
    assert shared["kv_tokens_read"] == 1000 + 8 * 10
    assert (
        alone["kv_tokens_read"] == alone["per_request_kv_tokens_read"] == shared["per_request_kv_tokens_read"] == 8080
    )
    assert shared["kv_bytes_read"] == 1080 * 2 * 2 * 64 * 2
    assert alone["kv_bytes_read"] == 8080 * 2 * 2 * 64 * 4
    assert shared["flops"] == alone["flops"] == 4 * 8080 * 8 * 64
    assert shared["num_partial_rows"] == 16
    assert shared["partial_bytes"] == 16 * 8 * 4 * (64 + 1)
    on_gpu = batchllm_ext.plan_attention(**inputs.plan_arguments, device="cuda").explain()
    assert on_gpu["partial_bytes"] == on_gpu["num_partial_rows"] * 8 * (2 * 64 + 4) > 0
    assert alone["num_partial_rows"] == 0
    assert shared["num_shared_segments"] == 1


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_plan_for_some_rows_gives_what_they_get_among_all(num_threads):
    inputs = Case("some rows", decodes(prefix(300), [10] * 8)).make_inputs()
    plan = batchllm_ext.plan_attention(**inputs.plan_arguments, num_threads=num_threads)
    rows = np.array([0, 3, 7], np.int32)
    k_pages, v_pages = inputs.k_pages, inputs.v_pages
    out_of = []
    for part, q in ((plan, inputs.q), (plan.for_rows(rows), inputs.q[rows])):
        out = np.empty_like(q)
        batchllm_ext.attention(part, q, k_pages, v_pages, out=out, lse=None, num_threads=num_threads)
        out_of.append(out)
    np.testing.assert_allclose(out_of[1], out_of[0][rows], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"rows\[1\]: expected a row in \[4, 8\), got 3"):
        plan.for_rows(np.array([3, 3], np.int32))


def plan_of_one_prefix(prefix_tokens: int, readers: int, own: int, **options) -> batchllm_ext.AttentionPlan:
    case = Case("roofline", decodes(prefix(prefix_tokens), [own] * readers), head_dim=64, **heads(4, 2))
    return batchllm_ext.plan_attention(**case.make_inputs().plan_arguments, num_threads=1, **options)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_predicted_seconds_of_one_prefix_by_hand(device: str):
    """1,000 tokens for 8 readers of 10 tokens of their own: 8 query heads and 2 KV heads of 64, bfloat16."""
    plan = plan_of_one_prefix(1000, 8, 10, device=device, share="always")
    kv_token, row = 2 * 2 * 64 * 2, 8 * 64 * 2  # bytes of K and V of a token, and of q or out of a row
    state, float32_state = row + 8 * 4, 2 * row + 8 * 4

    def cascade(state: int):  # two levels: q and a state each; the merge reads both states and writes one
        return pytest.approx((1080 * kv_token + 2 * 8 * row + 5 * 8 * state) / 1e9 + 3, abs=1e-8)

    # Memory is the limit.
    assert plan.predict_seconds(flops_per_s=1e15, bytes_per_s=1e9, launch_s=1.0) == {
        # q of every row for either item, out of every row; 16 states, written and read; wide tiles (the prefix's),
        # narrow ones and a merge
        "plan": pytest.approx((1080 * kv_token + (16 + 8) * row + 2 * 16 * state) / 1e9 + 3, abs=1e-8),
        # All read the same prefix at the same time, so it is loaded from memory once.
        "per_request": pytest.approx((1080 * kv_token + 2 * 8 * row) / 1e9 + 1, abs=1e-8),
        "cascade": cascade(state),
        "cascade_float32": cascade(float32_state),
    }


def test_predicted_seconds_of_blocks_by_hand():
    """The same if arithmetic is the limit, on one multiprocessor of an A100, whose launches do not overlap."""
    plan = plan_of_one_prefix(1000, 8, 10, device="cuda", share="always")
    assert plan.num_items == 1 + 8  # each makes a block for either KV head
    seconds = plan.predict_seconds(flops_per_s=1.0, bytes_per_s=1e18, launch_s=0.0)
    a_row = 4 * 64  # FLOPs of a key
    wide = 2 * 1000 * 64 * a_row  # 32 packed rows are multiplied as 64; two blocks share the multiprocessor
    narrow = 3 * 10 * 40 * a_row  # 4 as 40; three blocks share it, so that 16 take six rounds
    assert seconds["plan"] == pytest.approx(wide + 6 * narrow)
    assert seconds["cascade"] == pytest.approx(wide + 6 * narrow)  # its levels are the same tiles


def test_predictions_are_for_gpus_by_name_and_labelled_as_such():
    plan = plan_of_one_prefix(32768, 64, 10)
    predicted = plan.explain()["predicted_seconds"]
    peaks = batchllm_ext.gpu_peaks()
    for device, gpu in batchllm_ext.gpu_models().items():
        assert predicted[gpu["name"]] == plan.predict_seconds(**peaks[gpu["name"]], device=device)
    lines = str(plan).splitlines()
    title = next(i for i, line in enumerate(lines) if line.startswith("prediction, no GPU measured: "))
    for gpu in peaks:
        assert gpu in lines[title + 1]
    assert lines[title + 3].split() == [
        *("paged,", "request", "by", "request"),
        *(f"{1e6 * predicted[gpu]['per_request']:.1f}" for gpu in peaks),
    ]


@pytest.mark.parametrize(
    ("argument", "value"), [("flops_per_s", 0.0), ("bytes_per_s", float("nan")), ("launch_s", -1.0)]
)
def test_peaks_that_are_none_are_named(argument: str, value: float):
    peaks = {"flops_per_s": 1e12, "bytes_per_s": 1e9, "launch_s": 0.0, argument: value}
    with pytest.raises(ValueError, match=argument):
        plan_of_one_prefix(100, 2, 10).predict_seconds(**peaks)


def test_buffers_are_what_the_plan_executes():
    inputs = mixed_case().make_inputs()
    plan = batchllm_ext.plan_attention(**inputs.plan_arguments, num_threads=2)
    buffers = plan.buffers
    rows, items = buffers["rows"], buffers["items"]
    assert len(items) == plan.num_items
    assert sorted(np.concatenate([np.arange(*item[:2]) for item in items])) == list(range(len(rows)))
    assert (buffers["page_ids"] == inputs.arrays["segment_page_ids"]).all()
    # Every row that is not written through has a slot of its own, inside the range of its token's merge.
    slots = {int(token): (begin, end) for token, begin, end in buffers["merge_rows"]}
    partial = rows[rows[:, 3] >= 0]
    assert sorted(partial[:, 3]) == list(range(plan.num_partial_rows))
    assert all(slots[int(token)][0] <= slot < slots[int(token)][1] for token, _, _, slot in partial)
    with pytest.raises(ValueError, match="read-only"):
        rows[0] = 0
    del plan
    assert len(items) == len(buffers["items"]) > 0  # they keep the plan alive


def test_sharing_that_cannot_pay_is_left_out():
    """Two readers of one key: a partial state each would cost more than reading the key twice."""
    inputs = Case("short", decodes(prefix(1), [500, 500])).make_inputs()
    plan = batchllm_ext.plan_attention(**inputs.plan_arguments, num_threads=1)
    assert plan.explain()["num_shared_segments"] == 0
    assert plan.num_partial_rows == 0


def test_plan_prints_its_items():
    inputs = Case("print", decodes(prefix(1000), [10] * 50)).make_inputs()
    text = str(batchllm_ext.plan_attention(**inputs.plan_arguments, num_threads=1))
    assert "50 rows x keys [0, 1000)" in text
    assert "more" in text
