"""Our names, positions and defaults are those of the package itself, which can be imported without a GPU."""

import inspect
from inspect import Parameter

import flashinfer
import pytest

from batchllm.integrations import flashinfer as ours
from batchllm.integrations.flashinfer.paged_attention import HINTS, NOTHING_ASKED

WRAPPERS = (
    "BatchDecodeWithPagedKVCacheWrapper",
    "BatchPrefillWithPagedKVCacheWrapper",
    "CUDAGraphBatchDecodeWithPagedKVCacheWrapper",
    "MultiLevelCascadeAttentionWrapper",
)
METHODS = [
    (wrapper, method)
    for wrapper in WRAPPERS
    for method in ("__init__", "plan", "run", "begin_forward", "forward", "run_return_lse", "forward_return_lse")
    if hasattr(getattr(flashinfer, wrapper), method)
]
MERGES = ("merge_state", "merge_state_in_place", "merge_states")


def parameters(function) -> list[Parameter]:
    """By position first; without those that take what is left."""
    return [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    ]


def theirs(wrapper: str, method: str) -> list[Parameter]:
    cls = getattr(flashinfer, wrapper)
    if "BatchDecode" in wrapper and method in ("plan", "begin_forward"):
        return parameters(cls._plan_impl)  # which plan() hands its arguments to
    return parameters(getattr(cls, method))


@pytest.mark.parametrize("name", MERGES)
def test_merges_have_its_parameters(name):
    pairs = zip(parameters(getattr(ours, name)), parameters(getattr(flashinfer, name)), strict=True)
    for mine, other in pairs:
        assert (mine.name, mine.default) == (other.name, other.default)


@pytest.mark.parametrize(("wrapper", "method"), METHODS)
def test_a_method_takes_every_argument_or_refuses_it_by_name(wrapper, method):
    mine = {parameter.name: parameter for parameter in parameters(getattr(getattr(ours, wrapper), method))}
    for other in theirs(wrapper, method):
        if other.name in mine:
            assert mine[other.name].default == other.default, other.name
        else:
            assert other.name in HINTS | NOTHING_ASKED.keys(), other.name
            assert other.name in HINTS or other.default in NOTHING_ASKED[other.name], other.name


@pytest.mark.parametrize(("wrapper", "method"), METHODS)
def test_positions_are_the_same(wrapper, method):
    by_position = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    mine = [p.name for p in parameters(getattr(getattr(ours, wrapper), method)) if p.kind in by_position]
    if "BatchDecode" in wrapper and method in ("plan", "begin_forward"):
        required = [p.name for p in theirs(wrapper, method) if p.kind in by_position]
        assert mine == [*required, *flashinfer.decode._BATCH_DECODE_PLAN_LEGACY_POS_ARGS[: len(mine) - len(required)]]
    else:
        assert mine == [p.name for p in theirs(wrapper, method) if p.kind in by_position][: len(mine)]


def test_names_that_are_refused_or_ignored_are_its():
    known = {parameter.name for wrapper, method in METHODS for parameter in theirs(wrapper, method)} | {"args"}
    assert HINTS | NOTHING_ASKED.keys() <= known
