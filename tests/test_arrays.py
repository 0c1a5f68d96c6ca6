"""One receiver for every array of every call: whoever made it, and the same exception for the same mistake."""

from __future__ import annotations

import array
import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import batchllm_ext as ext
from tests.arrays import CALLS, ON_A_GPU_ONLY, TOKENS, Arrays, Call
from tests.attention.test_tensors import OnlyDLPack
from tests.gpu import OnGpu

ROOT = Path(__file__).resolve().parent.parent
ARGUMENTS = [(call, name) for call in CALLS for name in CALLS[call].arrays]


def of_arguments(arguments: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("call", "name"), arguments, ids=[".".join(pair) for pair in arguments])


of_every_argument = of_arguments(ARGUMENTS)

KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "torch": torch.from_numpy,
    "memoryview": memoryview,
    "DLPack": OnlyDLPack,
    "DLPack before 1.0": lambda values: OnlyDLPack(values, versions=False),
}
TYPE_CODES = {np.dtype(np.int32): "i", np.dtype(np.int64): "q", np.dtype(np.float32): "f"}


def test_the_table_has_every_array_argument_of_the_stub():
    """All that is annotated Any is an array, but for share=, and out= or lse= where none need be given."""
    stub = ast.parse((ROOT / "batchllm_ext.pyi").read_text())
    found: dict[str, set[str]] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                args = [*node.args.args, *node.args.kwonlyargs]
                names = {arg.arg for arg in args if arg.annotation and re.match(r"Any\b", ast.unparse(arg.annotation))}
                if names:
                    found.setdefault(prefix + node.name, set()).update(names)

    visit(stub.body, "")
    assert found.keys() == CALLS.keys() | ON_A_GPU_ONLY
    for call, names in found.items():
        if call in CALLS:
            assert names == CALLS[call].arrays.keys(), call


def outcome(call: Call, arrays: Arrays, changed: dict[str, Any]) -> list[Any]:
    """What comes of the call, and what it wrote into `arrays`."""
    returned = call.run(**arrays | changed)
    if isinstance(returned, dict):
        returned = list(returned.values())
    return [*(returned or []), *(arrays[name] for name in call.outputs)]


def assert_same(got: list[Any], expected: list[Any]) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


@of_every_argument
def test_an_array_of_any_kind_is_taken_as_numpys_is(call: str, name: str):
    this = CALLS[call]
    expected = outcome(this, this.with_copies(), {})
    for kind, made in KINDS.items():
        if call.startswith("merge_state") and kind != "torch" and name in ("out", "out_a"):
            continue  # results are made by the library of this one
        arrays = this.with_copies()
        got = outcome(this, arrays, {name: made(arrays[name])})
        assert_same([np.asarray(value) if isinstance(value, torch.Tensor) else value for value in got], expected)
    code = TYPE_CODES.get(this.arrays[name].dtype)
    if this.arrays[name].ndim == 1 and code is not None:
        arrays = this.with_copies()
        values = array.array(code, arrays[name].tolist())
        arrays[name] = np.frombuffer(values, arrays[name].dtype)
        assert_same(outcome(this, arrays, {name: values}), expected)


@of_every_argument
def test_what_may_not_be_changed_is_read(call: str, name: str):
    this = CALLS[call]
    arrays = this.with_copies()
    arrays[name].flags.writeable = False
    if name not in this.outputs:
        assert_same(outcome(this, arrays, {}), outcome(this, this.with_copies(), {}))
        return
    with pytest.raises(ValueError, match=f"^{name}: expected a writable tensor, got a read-only one$"):
        this.run(**arrays)


@of_every_argument
@pytest.mark.parametrize("nothing", [[1, 2], "text", 3, object()], ids=["list", "str", "int", "object"])
def test_what_is_no_array_is_a_type_error(call: str, name: str, nothing: Any):
    expected = f"^{name}: expected an array with the buffer protocol or __dlpack__, got {type(nothing).__name__}$"
    with pytest.raises(TypeError, match=expected):
        CALLS[call].run(**CALLS[call].with_copies() | {name: nothing})


@of_every_argument
def test_other_elements_are_a_type_error_whoever_has_them(call: str, name: str):
    arrays = CALLS[call].with_copies()
    for element, text in (
        (np.float64, "float64"),
        (np.int8, "int8"),
        (np.uint8, "uint8"),
        (np.complex64, None),
        (">i4", None),
    ):
        if arrays[name].dtype == element:
            continue
        other = arrays[name].astype(element)
        got = text or f"format '{memoryview(other).format}'"
        expected = (
            rf"^{name}: expected (float64|float32|bfloat16|uint8|int32|int64|bool)( or \w+)*, got {re.escape(got)}$"
        )
        kinds = [lambda values: values, *(KINDS.values() if text else ())]
        for made in kinds:
            with pytest.raises(TypeError, match=expected):
                CALLS[call].run(**arrays | {name: made(other)})


@of_every_argument
def test_other_dimensions_are_a_value_error(call: str, name: str):
    arrays = CALLS[call].with_copies()
    for num_dims, other in ((0, np.zeros((), arrays[name].dtype)), (4, arrays[name][(None,) * 3])):
        if other.ndim == arrays[name].ndim or other.ndim > 4:
            continue
        plural = r"1 dimension|\d dimensions \[.*\]"
        with pytest.raises(ValueError, match=rf"^{name}: expected ({plural}), got {num_dims}$"):
            CALLS[call].run(**arrays | {name: other})
    too_many = arrays[name][(None,) * (5 - arrays[name].ndim)]
    with pytest.raises(ValueError, match=f"^{name}: expected at most 4 dimensions, got 5$"):
        CALLS[call].run(**arrays | {name: too_many})


@of_arguments([(call, name) for call, name in ARGUMENTS if name not in CALLS[call].free_strides])
def test_a_gap_between_elements_is_a_value_error(call: str, name: str):
    arrays = CALLS[call].with_copies()
    apart = np.repeat(arrays[name], 2, axis=-1)[..., ::2]
    for made in (lambda values: values, *KINDS.values()):
        with pytest.raises(ValueError, match=f"^{name}: expected stride 1 in its last dimension, got 2$"):
            CALLS[call].run(**arrays | {name: made(apart)})


# What a build with kernels says of theirs is in tests/attention/test_cuda.py and tests/rows/test_cuda_row_ops.py.
@of_arguments([(call, name) for call, name in ARGUMENTS if not (CALLS[call].takes_cuda and ext.has_cuda())])
def test_a_tensor_on_a_gpu_is_a_value_error(call: str, name: str):
    arrays = CALLS[call].with_copies()
    with pytest.raises(ValueError, match=f"^{name}: expected a CPU tensor, got one on cuda:1: "):
        CALLS[call].run(**arrays | {name: OnGpu(arrays[name], 1)})


def test_memory_of_tokens_stays_while_it_is_read():
    """Nobody may give back or move what a trie or a planner has a view of."""
    indptr, bounds = np.array([0, len(TOKENS)]), np.array([2], np.int32)
    tokens = array.array("i", TOKENS.tolist())
    trie = ext.PrefixTrie(tokens, indptr, drop_last=1)
    with pytest.raises(BufferError):
        tokens.append(1)
    planner = ext.BatchPlanner(num_pages=20)
    planner.add_requests(tokens, indptr, ext.choose_segments(trie), max_output_tokens=bounds)
    del trie
    with pytest.raises(BufferError):
        tokens.append(1)
    while (batch := planner.next_batch()) is not None:
        planner.commit(np.zeros(len(batch.logit_rows), np.int32))
    tokens.append(1)


def test_tokens_are_not_copied():
    tokens = TOKENS.copy()
    indptr, bounds = np.array([0, len(tokens)]), np.array([1], np.int32)
    segments = ext.choose_segments(ext.PrefixTrie(tokens, indptr, drop_last=1))
    for made in (lambda values: values, *KINDS.values()):
        tokens[:] = TOKENS
        planner = ext.BatchPlanner(made(tokens), indptr, segments, max_output_tokens=bounds, num_pages=20)
        tokens[0] = 77  # which nobody should do, but tells whose memory is read
        assert planner.next_batch().token_ids[0] == 77
