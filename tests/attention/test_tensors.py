"""Tensors in and out: NumPy, torch, DLPack; and every mistake with its name."""

import ctypes
import re

import numpy as np
import pytest

import batchllm_ext
from tests.cases import Case, decodes, prefix
from tests.reference import assert_close, tolerance

CASE = Case("tensors", decodes(prefix(40), [3, 4, 5]), num_qo_heads=4, num_kv_heads=2, head_dim=32)


@pytest.fixture
def inputs():
    return CASE.make_inputs()


@pytest.fixture
def plan(inputs):
    return batchllm_ext.plan_attention(**inputs.plan_arguments, num_threads=2)


def test_numpy_in_numpy_out(inputs, plan):
    out, lse = batchllm_ext.attention(plan, inputs.q, inputs.k_pages, inputs.v_pages)
    assert isinstance(out, np.ndarray)
    assert (out.shape, out.dtype) == (inputs.q.shape, np.float32)
    assert (lse.shape, lse.dtype) == (inputs.q.shape[:2], np.float32)
    given = np.empty_like(out), np.empty_like(lse)
    returned = batchllm_ext.attention(plan, inputs.q, inputs.k_pages, inputs.v_pages, out=given[0], lse=given[1])
    assert returned[0] is given[0]
    assert returned[1] is given[1]
    assert (given[0] == out).all()
    assert (given[1] == lse).all()


def test_outputs_may_be_strided(inputs, plan):
    out, lse = batchllm_ext.attention(plan, inputs.q, inputs.k_pages, inputs.v_pages)
    wide = np.full((3, 6, 40), 7.0, np.float32)
    lse_by_head = np.full((4, 3), 7.0, np.float32)
    q = np.full((4, 3, 35), np.nan, np.float32).transpose(1, 0, 2)[..., :32]
    q[:] = inputs.q
    batchllm_ext.attention(plan, q, inputs.k_pages, inputs.v_pages, out=wide[:, 1:5, 4:36], lse=lse_by_head.T)
    assert (wide[:, 1:5, 4:36] == out).all()
    assert (lse == lse_by_head.T).all()
    wide[:, 1:5, 4:36] = 7.0
    assert (wide == 7.0).all()


def test_read_only_arrays_are_inputs(inputs, plan):
    for array in (inputs.q, inputs.k_pages, inputs.v_pages, *inputs.arrays.values()):
        array.flags.writeable = False
    batchllm_ext.plan_attention(**inputs.plan_arguments)
    batchllm_ext.attention(plan, inputs.q, inputs.k_pages, inputs.v_pages)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_in_torch_out(inputs, plan, dtype: str):
    torch = pytest.importorskip("torch")
    q, k_pages, v_pages = (
        torch.from_numpy(x).to(getattr(torch, dtype)) for x in (inputs.q, inputs.k_pages, inputs.v_pages)
    )
    out, lse = batchllm_ext.attention(plan, q, k_pages, v_pages)
    assert (out.dtype, lse.dtype) == (q.dtype, torch.float32)
    # bfloat16 dot products round the weights, and the output is rounded once.
    exact, exact_lse = batchllm_ext.attention(plan, q.float(), k_pages.float(), v_pages.float())
    bound = tolerance(inputs, float(exact_lse.abs().max()), dtype)
    assert_close("out", out.double().numpy(), exact.numpy(), bound + float((exact.to(q.dtype) - exact).abs().max()))
    assert_close("lse", lse.numpy(), exact_lse.numpy(), 1e-5)
    arrays = {name: torch.from_numpy(array) for name, array in inputs.arrays.items()}
    assert batchllm_ext.plan_attention(**(inputs.plan_arguments | arrays)).num_rows == 3


class OnlyDLPack:
    """A tensor of a library that supports only DLPack."""

    def __init__(self, array: np.ndarray, versions: bool = True):
        self.array, self.versions = array, versions

    def __dlpack__(self, **options):
        if not self.versions and "max_version" in options:
            raise TypeError("unexpected keyword max_version")
        return self.array.__dlpack__(**options)


@pytest.mark.parametrize("versions", [True, False], ids=["versioned", "unversioned"])
def test_any_dlpack_tensor_is_an_input(inputs, plan, versions: bool):
    out, _ = batchllm_ext.attention(plan, inputs.q, inputs.k_pages, inputs.v_pages)
    tensors = [OnlyDLPack(x, versions) for x in (inputs.q, inputs.k_pages, inputs.v_pages)]
    given = np.empty_like(out), np.empty(out.shape[:2], np.float32)
    batchllm_ext.attention(plan, *tensors, out=given[0], lse=OnlyDLPack(given[1], versions))
    assert (given[0] == out).all()
    with pytest.raises(
        ValueError, match=r"out: expected a tensor to write to, since q is of .*test_tensors.*; pass out="
    ):
        batchllm_ext.attention(plan, *tensors)


def test_dlpack_tensors_are_released():
    import gc
    import sys

    inputs = CASE.make_inputs()
    plan = batchllm_ext.plan_attention(**inputs.plan_arguments)
    before = sys.getrefcount(inputs.q), sys.getrefcount(inputs.k_pages)
    for _ in range(10):
        batchllm_ext.attention(plan, inputs.q, OnlyDLPack(inputs.k_pages), OnlyDLPack(inputs.v_pages, False))
        with pytest.raises(ValueError, match="k_pages: num_kv_heads"):
            batchllm_ext.attention(plan, inputs.q, OnlyDLPack(inputs.k_pages[:, :, :1]), inputs.v_pages)
    gc.collect()
    assert (sys.getrefcount(inputs.q), sys.getrefcount(inputs.k_pages)) == before


def test_tensors_that_are_none_of_ours_are_refused(inputs, plan):
    torch = pytest.importorskip("torch")
    pages = (inputs.k_pages, inputs.v_pages)
    with pytest.raises(ValueError, match=r"q: its library does not export it: .*requires? grad"):
        batchllm_ext.attention(plan, torch.from_numpy(inputs.q).requires_grad_(), *pages)
    with pytest.raises(ValueError, match="q: "):
        batchllm_ext.attention(plan, torch.empty(3, 4, 32, device="meta"), *pages)
    with pytest.raises(TypeError, match="q: expected an array with the buffer protocol or __dlpack__, got list"):
        batchllm_ext.attention(plan, [[1.0]], *pages)
    with pytest.raises(TypeError, match="q: expected float32 or bfloat16, got float16"):
        batchllm_ext.attention(plan, torch.from_numpy(inputs.q).half(), *pages)


class Nothing(ctypes.Structure):
    _fields_ = ()


WITHOUT_BYTES = {
    "void": np.empty((3, 4, 32), "V0"),
    "struct": np.empty((3, 4, 32), np.dtype([])),
    "text": np.zeros((3, 4, 32), "U0"),
    "ctypes": (Nothing * 32 * 4 * 3)(),
}


@pytest.mark.parametrize("nothing", WITHOUT_BYTES.values(), ids=WITHOUT_BYTES)
def test_elements_without_bytes_are_refused_as_of_no_known_type(inputs, plan, nothing):
    expected = "expected float32 or bfloat16, got format"
    with pytest.raises(TypeError, match=f"q: {expected}"):
        batchllm_ext.attention(plan, nothing, inputs.k_pages, inputs.v_pages)
    with pytest.raises(TypeError, match=f"x: {expected}"):
        batchllm_ext.rms_norm(nothing, np.ones(32, np.float32), eps=1e-5, out=inputs.q.copy())
    with pytest.raises(TypeError, match=f"out_b: {expected}"):
        batchllm_ext.merge_state(inputs.q, np.ones((3, 4), np.float32), nothing, np.ones((3, 4), np.float32))
    slots, pages = np.zeros(3, np.int64), np.zeros((1, 3, 4, 32), np.float32)
    with pytest.raises(TypeError, match=r"k: expected float32 or .*, got format"):
        batchllm_ext.append_kv(nothing, nothing, slots, pages, pages.copy())


def unaligned(array: np.ndarray) -> np.ndarray:
    memory = np.zeros(array.nbytes + 4, np.uint8)
    view = memory[1 : array.nbytes + 1].view(np.float32).reshape(array.shape)
    view[:] = array
    return view


ATTENTION_MISTAKES = [
    ("q: num_tokens is 2, but the plan has 3", lambda i: {"q": i.q[1:]}),
    ("q: num_qo_heads is 3, but the plan has 4", lambda i: {"q": i.q[:, 1:]}),
    ("q: head_dim is 31, but the plan has 32", lambda i: {"q": np.ascontiguousarray(i.q[..., 1:])}),
    ("q: expected 3 dimensions [num_tokens, num_qo_heads, head_dim], got 2", lambda i: {"q": i.q[0]}),
    (
        "q: expected stride 1 in its last dimension, got 2",
        lambda i: {"q": np.repeat(i.q, 2, axis=2)[..., ::2]},
    ),
    ("q: expected memory aligned to its 4-byte elements", lambda i: {"q": unaligned(i.q)}),
    ("q: expected at most 4 dimensions, got 5", lambda i: {"q": i.q[None, None]}),
    ("k_pages: page_size is 15, but the plan has 16", lambda i: {"k_pages": i.k_pages[:, 1:]}),
    ("k_pages: num_kv_heads is 1, but the plan has 2", lambda i: {"k_pages": i.k_pages[:, :, 1:]}),
    ("v_pages: num_pages is 1, but k_pages has 9", lambda i: {"v_pages": i.v_pages[:1]}),
    ("out: num_tokens is 4, but the plan has 3", lambda i: {"out": np.zeros((4, 4, 32), np.float32)}),
    (
        "out: expected its own memory for every element, got stride 0",
        lambda i: {"out": np.lib.stride_tricks.as_strided(i.q.copy(), i.q.shape, (0, 128, 4), writeable=True)},
    ),
    (
        "out: expected a writable tensor, got a read-only one",
        lambda i: {"out": np.broadcast_to(i.q, i.q.shape)},
    ),
    ("lse: num_qo_heads is 5, but the plan has 4", lambda i: {"lse": np.zeros((3, 5), np.float32)}),
    ("sinks: num_qo_heads is 2, but the plan has 4", lambda i: {"sinks": np.zeros(2, np.float32)}),
    ('dtype: expected "float32" or "bfloat16", got "float16"', lambda i: {"dtype": "float16"}),
    ("softmax_scale: expected a finite number", lambda i: {"softmax_scale": float("inf")}),
    ("soft_cap: expected a finite number of at least 0", lambda i: {"soft_cap": -1.0}),
    ("num_threads: expected at least 0, got -1", lambda i: {"num_threads": -1}),
    ("num_threads: expected at most 1024, got 1025", lambda i: {"num_threads": 1025}),
]


@pytest.mark.parametrize(("message", "change"), ATTENTION_MISTAKES, ids=[message for message, _ in ATTENTION_MISTAKES])
def test_attention_names_a_mistake(inputs, plan, message: str, change):
    arguments = {"q": inputs.q, "k_pages": inputs.k_pages, "v_pages": inputs.v_pages} | change(inputs)
    with pytest.raises(ValueError, match=re.escape(message)):
        batchllm_ext.attention(plan, **arguments)


ELEMENT_MISTAKES = [
    ("q: expected float32 or bfloat16, got float64", lambda i: {"q": i.q.astype(np.float64)}),
    ("q: expected float32 or bfloat16, got uint16", lambda i: {"q": i.q.astype(np.uint16)}),
    (
        "v_pages: expected float32, got bfloat16",
        lambda i: {"v_pages": i.v_pages.view(np.uint16)[..., ::2].copy(), "dtype": "bfloat16"},
    ),
    ("lse: expected float32, got float64", lambda i: {"lse": np.zeros((3, 4))}),
]


@pytest.mark.parametrize(("message", "change"), ELEMENT_MISTAKES, ids=[message for message, _ in ELEMENT_MISTAKES])
def test_attention_names_other_elements_than_it_takes(inputs, plan, message: str, change):
    arguments = {"q": inputs.q, "k_pages": inputs.k_pages, "v_pages": inputs.v_pages} | change(inputs)
    with pytest.raises(TypeError, match=re.escape(message)):
        batchllm_ext.attention(plan, **arguments)


def test_page_ids_must_lie_inside_the_pages(inputs, plan):
    page_ids = inputs.arrays["segment_page_ids"]
    num_pages = int(page_ids.max())
    index = int(page_ids.argmax())
    message = (
        rf"segment_page_ids\[{index}\]: expected a value in \[0, {num_pages}\), the pages of k_pages, got {num_pages}"
    )
    pages = inputs.k_pages[:num_pages], inputs.v_pages[:num_pages]
    with pytest.raises(ValueError, match=message):
        batchllm_ext.attention(plan, inputs.q, *pages)
    with pytest.raises(ValueError, match=message):
        batchllm_ext.attention_ref(**inputs.arrays, q=inputs.q, k_pages=pages[0], v_pages=pages[1])


def edited(name: str, index: int, value: int):
    def change(arguments: dict) -> dict:
        array = arguments[name].copy()
        array[index] = value
        return {name: array}

    return change


# The batch: three decodes at position 42, 43, 44 over segments [0, 40) and own parts of 3, 4 and 5 tokens.
PLAN_MISTAKES = [
    ("span_indptr[0]: expected 0, got 1", edited("span_indptr", 0, 1)),
    ("span_indptr[2]: expected at least span_indptr[1] = 1, got 0", edited("span_indptr", 2, 0)),
    (
        "span_indptr: expected num_spans + 1 = 4 elements, got 3",
        lambda a: {"span_indptr": a["span_indptr"][1:] - 1},
    ),
    (
        "link_indptr: expected num_spans + 1 = 4 elements, got 5",
        lambda a: {"link_indptr": np.arange(5, dtype=np.int32)},
    ),
    ("link_indptr[3]: expected the size of link_segment = 6, got 5", edited("link_indptr", 3, 5)),
    ("link_segment[4]: expected a value in [0, 4), got 4", edited("link_segment", 4, 4)),
    ("link_segment[1]: expected a value in [0, 4), got -1", edited("link_segment", 1, -1)),
    (
        "link_segment[1]: expected a segment that begins in [0, 40], where the link before it can end, got "
        "segment 1 that begins at 41",
        edited("segment_begin", 1, 41),
    ),
    (
        "segment_page_indptr[4]: expected the size of segment_page_ids = 6, got 5",
        edited("segment_page_indptr", 4, 5),
    ),
    ("segment_page_ids[2]: expected a value in [0, 2147483647), got -1", edited("segment_page_ids", 2, -1)),
    (
        "segment_num_tokens[3] = 17: expected at least 2 pages of page_size 16, got 1",
        edited("segment_num_tokens", 3, 17),
    ),
    (
        "segment_num_tokens[1]: expected a value in [0, 2147483647), got -3",
        edited("segment_num_tokens", 1, -3),
    ),
    (
        "segment_num_tokens: expected num_segments = 4 elements, got 3",
        lambda a: {"segment_num_tokens": a["segment_num_tokens"][1:]},
    ),
    ("segment_begin[1]: expected a value in [0, 2147483647), got -1", edited("segment_begin", 1, -1)),
    ("span_begin[1]: expected a value in [0, 2147483647), got -1", edited("span_begin", 1, -1)),
    ("span_begin: expected 1 dimension, got 2", lambda a: {"span_begin": a["span_begin"][None]}),
    ("num_qo_heads: expected a multiple of num_kv_heads = 2, got 5", lambda a: {"num_qo_heads": 5}),
    ("num_kv_heads: expected at least 1, got 0", lambda a: {"num_kv_heads": 0}),
    ("head_dim: expected at least 1, got 0", lambda a: {"head_dim": 0}),
    ("page_size: expected at least 1, got 0", lambda a: {"page_size": 0}),
    ("num_qo_heads: expected at most 1024, got 2147483646", lambda a: {"num_qo_heads": 2**31 - 2}),
    ("head_dim: expected at most 8192, got 2147483647", lambda a: {"head_dim": 2**31 - 1}),
    ("span_indptr: expected at most 16777216 rows, got 2147483647", edited("span_indptr", 3, 2**31 - 1)),
    ("segment_begin[3]: the segment's last position does not fit into int32", edited("segment_begin", 3, 2**31 - 3)),
    ('share: expected True, False or "always", got 1', lambda a: {"share": 1}),
    ("window_left: expected at least -1, got -2", lambda a: {"window_left": -2}),
    ("num_threads: expected at least 0, got -1", lambda a: {"num_threads": -1}),
    ("num_threads: expected at most 1024, got 2147483647", lambda a: {"num_threads": 2**31 - 1}),
    ('device: expected one of "cpu", "cuda", "a100", "h100", "h200", got "tpu"', lambda a: {"device": "tpu"}),
]


@pytest.mark.parametrize(("message", "change"), PLAN_MISTAKES, ids=[message for message, _ in PLAN_MISTAKES])
def test_plan_attention_names_a_mistake(inputs, message: str, change):
    arguments = inputs.plan_arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        batchllm_ext.plan_attention(**(arguments | change(arguments)))


def test_plan_attention_names_other_elements_than_it_takes(inputs):
    arguments = inputs.plan_arguments
    with pytest.raises(TypeError, match="span_begin: expected int32, got int64"):
        batchllm_ext.plan_attention(**arguments | {"span_begin": arguments["span_begin"].astype(np.int64)})


def test_attention_ref_checks_its_arrays_too(inputs):
    tensors = {"q": inputs.q, "k_pages": inputs.k_pages, "v_pages": inputs.v_pages}
    with pytest.raises(ValueError, match="q: num_tokens is 2, but span_indptr has 3"):
        batchllm_ext.attention_ref(**inputs.arrays, **(tensors | {"q": inputs.q[1:]}))
    with pytest.raises(ValueError, match=r"link_segment\[1\]: expected a value in \[0, 4\), got 9"):
        batchllm_ext.attention_ref(**(inputs.arrays | edited("link_segment", 1, 9)(inputs.arrays)), **tensors)


def test_an_error_leaves_the_outputs_alone(inputs, plan):
    out = np.full(inputs.q.shape, 5.0, np.float32)
    with pytest.raises(ValueError, match="sinks"):
        batchllm_ext.attention(plan, inputs.q, inputs.k_pages, inputs.v_pages, out=out, sinks=np.zeros(1, np.float32))
    assert (out == 5.0).all()
