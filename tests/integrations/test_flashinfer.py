"""FlashInfer's wrappers and merges on our kernels, against what it documents, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import batchllm_ext as ext
from batchllm.integrations import flashinfer
from batchllm.integrations.flashinfer.chains import attention_batch
from batchllm.integrations.flashinfer.levels import new_level
from batchllm.integrations.flashinfer.paged_attention import widened_pages
from tests.integrations.flashinfer_batch import NAN, Batch, check, reference
from tests.reference import assert_close

WORKSPACE = torch.empty(0, dtype=torch.uint8)

REQUESTS = [(3, 9), (0, 5), (1, 1), (7, 7), (2, 0), (5, 2), (0, 0), (4, 30), (1, 8)]  # rows, keys
LEVELS = {
    "two": [[(12, 21)], [(3, 5), (0, 4), (1, 0), (8, 13)]],
    "three": [[(20, 11)], [(9, 6), (0, 3), (11, 0)], [(4, 9), (5, 4), (0, 0), (11, 17)]],
    "crossing": [[(5, 10), (4, 3)], [(3, 7), (6, 2)], [(1, 3), (1, 5), (5, 8), (2, 1)]],
    "decode": [[(6, 40)], [(2, 0), (4, 9)], [(1, 1), (1, 0), (1, 4), (1, 5), (1, 12), (1, 2)]],
}


@pytest.mark.parametrize("window_left", [-1, 0, 4, 2**31 - 1])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("page_size", "heads"), [(1, (2, 2)), (3, (6, 1)), (16, (8, 2))])
def test_prefill_attends_to_the_last_keys_of_every_request(causal, window_left, page_size, heads):
    batch = Batch([REQUESTS], *heads, page_size=page_size)
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(WORKSPACE)
    arrays = [of_levels[0] for of_levels in batch.index_arrays]
    wrapper.plan(*arrays, *batch.heads, causal=causal, window_left=window_left)
    got = wrapper.run(torch.from_numpy(batch.q), batch.cache("NHD", whole=True), return_lse=True)
    check(got, reference(batch, causal=causal, window_left=window_left))


@pytest.mark.parametrize("window_left", [-1, 3])
@pytest.mark.parametrize("q_len_per_req", [1, 3])
def test_decode_attends_to_the_last_keys_of_every_request(q_len_per_req, window_left):
    batch = Batch([[(q_len_per_req, keys) for keys in (1, 0, 13, 4, 2, 40)]])
    _, *arrays = [of_levels[0] for of_levels in batch.index_arrays]
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(WORKSPACE, "HND")
    wrapper.plan(*arrays, *batch.heads, window_left=window_left, q_len_per_req=q_len_per_req)
    got = wrapper.run(torch.from_numpy(batch.q), batch.cache("HND", whole=False), return_lse=True)
    check(got, reference(batch, causal=True, window_left=window_left))


@pytest.mark.parametrize("window_left", [-1, 6])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", LEVELS)
def test_a_cascade_is_attention_to_the_keys_of_all_levels(name, causal, window_left):
    batch = Batch(LEVELS[name], 6, 2, page_size=2)
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(len(batch.levels), WORKSPACE)
    wrapper.plan(*batch.index_arrays, *batch.heads, causal=causal, window_left=window_left)
    out = wrapper.run(torch.from_numpy(batch.q), batch.cache("NHD", whole=True))
    expected, _ = reference(batch, causal=causal, window_left=window_left)
    assert_close("out", out.numpy(), expected, 2e-5)


@pytest.mark.parametrize("seed", range(20))
def test_a_random_cascade(seed):
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(1, 30))
    levels = []
    for _ in range(int(rng.integers(1, 5))):
        cuts = np.sort(rng.integers(0, num_rows + 1, rng.integers(0, 8)))
        rows = np.diff([0, *cuts, num_rows])
        levels.append([(int(n), int(n + rng.integers(-1, 40)) if n else 0) for n in rows])
    batch = Batch(levels, num_qo_heads=3, num_kv_heads=3, page_size=int(rng.integers(1, 9)), seed=seed)
    causal, window_left = bool(rng.integers(2)), int(rng.choice([-1, 3, 20]))
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(len(levels), WORKSPACE)
    wrapper.plan(*batch.index_arrays, *batch.heads, causal=causal, window_left=window_left)
    out = wrapper.run(torch.from_numpy(batch.q), batch.cache("NHD", whole=False))
    assert_close("out", out.numpy(), reference(batch, causal=causal, window_left=window_left)[0], 2e-5)


def share_pages(batch: Batch, rng: np.random.Generator) -> None:
    """Requests begin with the first pages of ones before them, of which they may have begun with others' themselves."""
    page_ids, indptr = batch.page_ids[0], batch.kv_indptr[0]
    for request in range(1, len(indptr) - 1):
        older = int(rng.integers(request))
        whole = min(batch.kv_len[0][older], batch.kv_len[0][request]) // batch.page_size
        count = int(rng.integers(whole + 1))
        page_ids[indptr[request] : indptr[request] + count] = page_ids[indptr[older] : indptr[older] + count]


@pytest.mark.parametrize("seed", range(20))
def test_pages_that_requests_have_in_common_change_nothing(seed):
    rng = np.random.default_rng(seed)
    lengths = [(int(n), int(n + rng.integers(-2, 90)) if n else 0) for n in rng.integers(0, 6, 12)]
    batch = Batch([[(rows, max(keys, 0)) for rows, keys in lengths]], page_size=int(rng.integers(1, 6)), seed=seed)
    share_pages(batch, rng)
    causal, window_left = bool(rng.integers(2)), int(rng.choice([-1, 3, 20]))
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(WORKSPACE)
    wrapper.plan(
        *[of_levels[0] for of_levels in batch.index_arrays], *batch.heads, causal=causal, window_left=window_left
    )
    got = wrapper.run(torch.from_numpy(batch.q), batch.cache("NHD", whole=True), return_lse=True)
    check(got, reference(batch, causal=causal, window_left=window_left))


def test_pages_that_requests_have_in_common_are_read_once():
    """32 requests of 40 pages and a part of one, of which all have the first 10, and each half the next 20."""
    batch = Batch([[(1, 163)] * 32])
    page_ids = batch.page_ids[0].reshape(32, 41)
    page_ids[:, :10] = page_ids[0, :10]
    page_ids[:16, 10:30], page_ids[16:, 10:30] = page_ids[0, 10:30], page_ids[16, 10:30]
    level = new_level(4, **dict(zip("abcd", (of_levels[0] for of_levels in batch.index_arrays), strict=True)))
    arrays, _ = attention_batch([level], 4, causal=True, window_left=-1)
    plan = ext.plan_attention(*arrays, num_qo_heads=4, num_kv_heads=2, head_dim=16, page_size=4, share="always")
    assert plan.explain()["kv_tokens_read"] == 4 * (10 + 2 * 20) + 32 * 43
    assert plan.explain()["per_request_kv_tokens_read"] == 32 * 163
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(WORKSPACE)
    wrapper.plan(*[of_levels[0] for of_levels in batch.index_arrays][1:], *batch.heads)
    got = wrapper.run(torch.from_numpy(batch.q), batch.cache("NHD", whole=True), return_lse=True)
    check(got, reference(batch, causal=True))


def test_levels_are_the_merge_of_attention_to_each():
    """With FlashInfer's own means: prefill of each level, merge_states."""
    batch = Batch(LEVELS["three"])
    q, cache = torch.from_numpy(batch.q), batch.cache("NHD", whole=True)
    states = []
    for arrays in zip(*batch.index_arrays, strict=True):
        prefill = flashinfer.BatchPrefillWithPagedKVCacheWrapper(WORKSPACE)
        prefill.plan(*arrays, *batch.heads)
        states.append(prefill.run_return_lse(q, cache))
    outs, lses = (torch.stack(parts, dim=1) for parts in zip(*states, strict=True))
    check(flashinfer.merge_states(outs, lses), reference(batch))
    cascade = flashinfer.MultiLevelCascadeAttentionWrapper(3, WORKSPACE)
    cascade.plan(*batch.index_arrays, *batch.heads)
    torch.testing.assert_close(cascade.run(q, cache), flashinfer.merge_states(outs, lses)[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_scale_cap_and_sinks(layout, whole):
    batch = Batch([REQUESTS])
    arrays = [of_levels[0] for of_levels in batch.index_arrays]
    options = {"sm_scale": 1.7, "logits_soft_cap": 2.5, "causal": True}
    sinks = np.array([-1.0, 0.5, 2.0, 0.0], np.float32)
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(WORKSPACE, layout)
    wrapper.plan(*arrays, *batch.heads, **options)
    q, cache = torch.from_numpy(batch.q), batch.cache(layout, whole=whole)
    check(wrapper.run(q, cache, return_lse=True), reference(batch, **options))
    check(
        wrapper.run(q, cache, return_lse=True, sinks=torch.from_numpy(sinks)), reference(batch, **options, sinks=sinks)
    )


def test_bfloat16_rounds_the_output_once_more():
    batch = Batch([REQUESTS])
    for array in ("q", "k_pages", "v_pages"):
        setattr(batch, array, torch.from_numpy(getattr(batch, array)).bfloat16().float().numpy())
    arrays = [of_levels[0] for of_levels in batch.index_arrays]
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(WORKSPACE)
    q, cache = torch.from_numpy(batch.q).bfloat16(), batch.cache("NHD", whole=True, dtype=torch.bfloat16)
    wrapper.plan(*arrays, *batch.heads, q_data_type=torch.bfloat16)
    out, lse = wrapper.run(q, cache, return_lse=True)
    assert out.dtype == torch.bfloat16
    expected = reference(batch)
    assert_close("out", out.float().numpy(), expected[0], 2**-6)
    assert_close("lse", lse.numpy(), expected[1], 2e-5)
    wrapper.plan(*arrays, *batch.heads, q_data_type="bfloat16", o_data_type="float32")
    wide = wrapper.run(q, cache)
    assert wide.dtype == torch.float32
    assert torch.equal(wide.bfloat16(), out)


def half(batch: Batch) -> Batch:
    """Of values that float16 holds."""
    for name in ("q", "k_pages", "v_pages"):
        setattr(batch, name, getattr(batch, name).astype(np.float16).astype(np.float32))
    return batch


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_float16_on_a_cpu_is_float32_rounded_once(layout: str):
    batch = half(Batch([REQUESTS]))
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(WORKSPACE, layout)
    wrapper.plan(*[of_levels[0] for of_levels in batch.index_arrays], *batch.heads, causal=True)
    q, cache = torch.from_numpy(batch.q), batch.cache(layout, whole=True)
    expected, expected_lse = wrapper.run(q, cache, return_lse=True)
    out = torch.full_like(q, NAN, dtype=torch.float16)
    got, lse = wrapper.run(q.half(), cache.half(), out=out, return_lse=True)
    assert got is out
    assert torch.equal(out, expected.half())
    assert torch.equal(lse, expected_lse)
    assert wrapper.run(q.half(), cache.half()).dtype == torch.float16
    with pytest.raises(ValueError, match=r"^out: "):
        wrapper.run(q.half(), cache.half(), out=out[1:])


def test_of_a_float16_cache_on_a_cpu_only_pages_that_are_read_are_converted():
    batch = half(Batch([[(1, 9), (1, 6)]]))
    level = new_level(4, **dict(zip("abcd", (of_levels[0] for of_levels in batch.index_arrays), strict=True)))
    pages = torch.from_numpy(batch.k_pages).half()
    wide = widened_pages(pages, [level])
    assert (wide.dtype, wide.shape) == (torch.float32, pages.shape)
    torch.testing.assert_close(wide[level.page_ids], pages[level.page_ids].float(), rtol=0, atol=0, equal_nan=True)
    assert widened_pages(wide, [level]) is wide


def test_results_go_where_the_caller_says():
    batch = Batch([REQUESTS])
    arrays = [of_levels[0] for of_levels in batch.index_arrays]
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(WORKSPACE)
    wrapper.plan(*arrays, *batch.heads)
    q, cache = torch.from_numpy(batch.q), batch.cache("NHD", whole=True)
    expected_out, expected_lse = reference(batch)
    out, lse = torch.full_like(q, NAN), torch.full(q.shape[:2], NAN)
    got = wrapper.run(q, cache, out=out, lse=lse, return_lse=True)
    assert got[0] is out
    assert got[1] is lse
    check((out, lse), (expected_out, expected_lse))
    got = wrapper.run(q, cache, return_lse=True, lse_base="ln", lse_layout="HN")
    assert_close("lse", got[1].T.numpy(), expected_lse * np.log(2), 2e-5)
    assert got[1].is_contiguous()
    assert wrapper.run(q, cache).shape == q.shape


def test_a_call_may_differ_from_the_plan():
    batch = Batch([REQUESTS])
    arrays = [of_levels[0] for of_levels in batch.index_arrays]
    q, cache = torch.from_numpy(batch.q), batch.cache("NHD", whole=True)
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(WORKSPACE)
    wrapper.begin_forward(*arrays, *batch.heads, causal=True, window_left=2)
    check(wrapper.run(q, cache, return_lse=True, window_left=5), reference(batch, causal=True, window_left=5))
    check(wrapper.run(q, cache, return_lse=True), reference(batch, causal=True, window_left=2))
    check(wrapper.forward_return_lse(q, cache, sm_scale=0.3), reference(batch, sm_scale=0.3))
    batch = Batch([[(1, keys) for keys in (1, 0, 13, 4)]])
    decode = flashinfer.BatchDecodeWithPagedKVCacheWrapper(WORKSPACE)
    decode.plan(*[of_levels[0] for of_levels in batch.index_arrays][1:], *batch.heads, window_left=2)
    q, cache = torch.from_numpy(batch.q), batch.cache("NHD", whole=True)
    check(decode.forward_return_lse(q, cache, logits_soft_cap=1.5), reference(batch, logits_soft_cap=1.5))
    check(decode.run_return_lse(q, cache, window_left=0), reference(batch, window_left=0))


def test_an_empty_batch_has_no_rows():
    batch = Batch([[(0, 5), (0, 0)]])
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(WORKSPACE)
    wrapper.plan(*[of_levels[0] for of_levels in batch.index_arrays], *batch.heads, causal=True)
    out, lse = wrapper.run(torch.from_numpy(batch.q), batch.cache("NHD", whole=True), return_lse=True)
    assert out.shape == batch.q.shape
    assert lse.shape == (0, 4)


def states(num_states: int) -> tuple[torch.Tensor, torch.Tensor]:
    """With an empty state of NaN here and there, and rows all of whose states are empty."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(6, num_states, 3, 8, generator=generator)
    s = torch.randn(6, num_states, 3, generator=generator) * 4
    s[1, 0], s[4] = -torch.inf, -torch.inf
    v[s == -torch.inf] = NAN
    return v, s


def merged(v: torch.Tensor, s: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    total = torch.logsumexp(s.double() * np.log(2), dim=1) / np.log(2)
    weights = torch.exp2(s.double() - total[:, None]).nan_to_num(0.0)[..., None]
    return (weights * v.double().nan_to_num(0.0)).sum(1).numpy(), total.numpy()


def test_merges_are_to_base_2():
    v, s = states(5)
    check(flashinfer.merge_states(v, s), merged(v, s))
    v, s = states(2)
    pair = flashinfer.merge_state(v[:, 0], s[:, 0], v[:, 1], s[:, 1])
    check(pair, merged(v, s))
    here, here_s = v[:, 0].clone(), s[:, 0].clone()
    flashinfer.merge_state_in_place(here, here_s, v[:, 1], s[:, 1])
    check((here, here_s), merged(v, s))
    here, here_s = v[:, 0].clone(), s[:, 0].clone()
    mask = torch.tensor([True, False, True, False, True, False])
    flashinfer.merge_state_in_place(here, here_s, v[:, 1], s[:, 1], mask)
    for part, old, new in ((here, v[:, 0], pair[0]), (here_s, s[:, 0], pair[1])):
        assert torch.equal(part[mask], new[mask])
        torch.testing.assert_close(part[~mask], old[~mask], rtol=0, atol=0, equal_nan=True)


def test_merges_of_float16_on_a_cpu_are_rounded_once():
    v, s = states(5)
    v = v.half()
    wide, wide_s = flashinfer.merge_states(v.float(), s)
    got, got_s = flashinfer.merge_states(v, s)
    assert torch.equal(got, wide.half())
    assert torch.equal(got_s, wide_s)
    pair = [v[:, 0].contiguous(), s[:, 0].contiguous(), v[:, 1].contiguous(), s[:, 1].contiguous()]
    got, _ = flashinfer.merge_state(*pair)
    assert torch.equal(got, flashinfer.merge_state(pair[0].float(), pair[1], pair[2].float(), pair[3])[0].half())
    flashinfer.merge_state_in_place(*pair)
    assert torch.equal(pair[0], got)


def test_merges_of_other_types_are_refused_by_name():
    v, s = torch.zeros(2, 3, 8).to(torch.float8_e4m3fn), torch.zeros(2, 3)
    with pytest.raises(NotImplementedError, match=r"^v_a: "):
        flashinfer.merge_state(v, s, v, s)
    with pytest.raises(NotImplementedError, match=r"^v: "):
        flashinfer.merge_state_in_place(v, s, v, s)
    with pytest.raises(NotImplementedError, match=r"^v: "):
        flashinfer.merge_states(v[:, None], s[:, None])


def prefill_call(**changes):
    """A call of plan() and run() that is right but for `changes`, by argument."""
    batch = Batch([[(2, 5), (1, 3)]])
    names = ("qo_indptr", "paged_kv_indptr", "paged_kv_indices", "paged_kv_last_page_len")
    arrays = dict(zip(names, (of_levels[0] for of_levels in batch.index_arrays), strict=True))
    heads = dict(zip(("num_qo_heads", "num_kv_heads", "head_dim_qk", "page_size"), batch.heads, strict=True))
    cache = batch.cache("NHD", whole=True)
    run = {"q": torch.from_numpy(batch.q), "paged_kv_cache": cache}
    made = {"float_workspace_buffer": WORKSPACE}
    run_names = ("q", "paged_kv_cache", "k_scale", "v_scale", "q_scale", "kv_cache_sf", "lse_base", "lse_layout")
    made_names = ("kv_layout", "jit_args")
    for name, value in changes.items():
        (run if name in run_names else made if name in made_names else arrays)[name] = value
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(**made)
    wrapper.plan(**{**heads, **arrays})
    wrapper.run(**run)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("custom_mask", torch.ones(3, dtype=torch.bool)),
        ("packed_custom_mask", torch.ones(3, dtype=torch.uint8)),
        ("pos_encoding_mode", "ROPE_LLAMA"),
        ("head_dim_vo", 8),
        ("q_data_type", torch.float8_e4m3fn),
        ("kv_data_type", "float8_e4m3fn"),
        ("o_data_type", torch.int8),
        ("prefix_len_ptr", torch.ones(2)),
        ("token_pos_in_items_len", 4),
        ("seq_lens", torch.ones(2)),
        ("block_tables", torch.ones(2, 2)),
        ("fixed_split_size", 8),
        ("jit_args", ["x"]),
        ("k_scale", 0.5),
        ("v_scale", torch.ones(1)),
        ("q_scale", 2.0),
        ("kv_cache_sf", torch.ones(1)),
        ("q", torch.zeros(3, 4, 16, dtype=torch.float64)),
        ("paged_kv_cache", torch.zeros(6, 2, 4, 2, 16, dtype=torch.float8_e4m3fn)),
    ],
)
def test_what_is_not_done_is_refused_by_name(name, value):
    with pytest.raises(NotImplementedError, match=rf"^{name}: "):
        prefill_call(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("qo_indptr", torch.tensor([1, 3]), ValueError, r"qo_indptr: expected offsets that begin with 0, got \[1\]"),
        ("qo_indptr", torch.tensor([0, 3, 2]), ValueError, r"qo_indptr\[2\]: expected no less than the offset before"),
        ("qo_indptr", [0, 2, 3], TypeError, "qo_indptr: expected a tensor of integers with one dimension, got list"),
        ("qo_indptr", torch.zeros(3), TypeError, r"qo_indptr: expected .*, got torch.float32 \[3\]"),
        ("paged_kv_indptr", torch.tensor([0, 2]), ValueError, "paged_kv_indptr: expected 2 groups, .*, got 1"),
        ("paged_kv_indices", torch.tensor([0, 1]), ValueError, r"paged_kv_indices: expected .* = 3 page ids, got 2"),
        ("paged_kv_indices", torch.tensor([0, -1, 2]), ValueError, r"paged_kv_indices\[1\]: expected .*, got -1"),
        ("paged_kv_indices", torch.tensor([0, 9, 2]), ValueError, "paged_kv_cache: expected pages up to 9, .* 6 pages"),
        ("paged_kv_last_page_len", torch.tensor([1, 5]), ValueError, r"len\[1\]: expected a length in \[1, 4\], got 5"),
        ("paged_kv_last_page_len", torch.tensor([0, 3]), ValueError, r"len\[0\]: expected a length in \[1, 4\], got 0"),
        ("paged_kv_cache", torch.zeros(6, 4, 2, 16), ValueError, r"paged_kv_cache: expected .*, got \[6, 4, 2, 16\]"),
        (
            "paged_kv_cache",
            torch.zeros(6, 2, 2, 4, 16),
            ValueError,
            r"paged_kv_cache: .* = \[4, 2, 16\], got \[2, 4, 16\]",
        ),
        ("kv_layout", "DHN", ValueError, "kv_layout: expected 'NHD' or 'HND', got 'DHN'"),
        ("lse_base", "log10", ValueError, "lse_base: expected 'log2' or 'ln', got 'log10'"),
        ("lse_layout", "HH", ValueError, "lse_layout: expected 'NH' or 'HN', got 'HH'"),
        ("num_kv_heads", 3, ValueError, "num_qo_heads: expected a multiple of num_kv_heads = 3, got 4"),
        ("masks", None, TypeError, r"plan\(\) got an unexpected keyword argument 'masks'"),
    ],
)
def test_wrong_arguments_are_told_by_name(name, value, error, message):
    with pytest.raises(error, match=message):
        prefill_call(**{name: value})


def test_right_arguments_are_taken():
    """The call of the two tests above, without a change; and hints, which change nothing."""
    prefill_call()
    prefill_call(non_blocking=False, disable_split_kv=True, rope_theta=1e5, k_scale=1.0, max_sequence_kv=7)


def test_a_cascade_names_its_levels():
    batch = Batch(LEVELS["two"])
    qo_indptr, kv_indptr, page_ids, last_page_len = batch.index_arrays
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(2, WORKSPACE)
    with pytest.raises(ValueError, match="paged_kv_indices_arr: expected 2 tensors, one per level, got 1"):
        wrapper.plan(qo_indptr, kv_indptr, page_ids[:1], last_page_len, *batch.heads)
    with pytest.raises(ValueError, match=r"qo_indptr_arr\[0\]: expected 12 rows, as in the last level, got 11"):
        wrapper.plan([torch.tensor([0, 11]), qo_indptr[1]], kv_indptr, page_ids, last_page_len, *batch.heads)
    short = Batch([[(4, 9)], [(1, 3), (3, 1)]])
    with pytest.raises(NotImplementedError, match=r"causal: .* at most one row more than keys"):
        wrapper.plan(*short.index_arrays, *short.heads, causal=True)
    with pytest.raises(RuntimeError, match=r"run: expected a call of plan\(\) before"):
        wrapper.run(torch.from_numpy(batch.q), batch.cache("NHD", whole=True))
    with pytest.raises(ValueError, match="num_levels: expected at least 1, got 0"):
        flashinfer.MultiLevelCascadeAttentionWrapper(0, WORKSPACE)


def test_decode_says_what_it_takes():
    batch = Batch([[(1, 4), (1, 2)]])
    arrays = [of_levels[0] for of_levels in batch.index_arrays][1:]
    decode = flashinfer.BatchDecodeWithPagedKVCacheWrapper(WORKSPACE)
    with pytest.raises(ValueError, match="q_len_per_req: expected at least 1, got 0"):
        decode.plan(*arrays, *batch.heads, q_len_per_req=0)
    with pytest.raises(NotImplementedError, match="is_causal: "):
        decode.plan(*arrays, *batch.heads, is_causal=True)
    with pytest.raises(NotImplementedError, match="window_right: "):
        decode.plan(*arrays, *batch.heads, window_right=3)
    with pytest.raises(ValueError, match="last_page_len: expected 2 groups, those of the batch, got 1"):
        decode.plan(arrays[0], arrays[1], arrays[2][:1], *batch.heads)
    with pytest.raises(ValueError, match=r"indptr: expected offsets that begin with 0, got \[\]"):
        decode.plan(arrays[0][:0], *arrays[1:], *batch.heads)
