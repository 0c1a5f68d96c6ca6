"""Our experts in place of transformers' stacked ones."""

import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from batchllm.device.int8 import segments_of
from batchllm.models.transformers_experts import Experts, has_experts, is_silu_and_mul, stacked_experts
from batchllm.models.transformers_modules import LastRows, Pass
from batchllm.models.transformers_replacement import replace_modules
from tests.engine import tiny
from tests.engine.architectures import NUM_LAYERS, of_architecture
from tests.engine.put_in_8_bits import experts_in_8_bits

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

HIDDEN, NUM_EXPERTS, NUM_CHOSEN = 32, 4, 2
ARCHITECTURES = ["glm4_moe", "dots1", "gpt_oss", "granitemoe", "minimax_m2", "mixtral", "olmoe", "qwen3_moe"]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def routed(num_rows: int, dtype: torch.dtype = torch.float32, num_experts: int = NUM_EXPERTS) -> tuple[Tensor, ...]:
    """Rows, the experts of each, and their weights."""
    generator = torch.Generator().manual_seed(num_rows)
    x = torch.randn(num_rows, HIDDEN, generator=generator).to(dtype)
    chosen = torch.rand(num_rows, num_experts, generator=generator).argsort(dim=1)[:, :NUM_CHOSEN]
    return x, chosen, torch.rand(num_rows, NUM_CHOSEN, generator=generator).to(dtype)


def theirs_of(model_type: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    return next(module for module in of_architecture(model_type).to(dtype).modules() if has_experts(module))


def ours_of(model_type: str, *, in_8_bits: bool = False) -> Experts:
    experts = stacked_experts(theirs_of(model_type), routed(3), Pass())
    for linear in experts.linears if in_8_bits else ():
        linear.quantize()
    return experts


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("model_type", ARCHITECTURES)
@torch.inference_mode()
def test_ours_give_what_transformers_give(model_type, dtype):
    theirs = theirs_of(model_type, dtype)
    ours = stacked_experts(deepcopy(theirs), routed(3, dtype), Pass())
    for num_rows in (0, 1, 2, 33):
        arguments = routed(num_rows, dtype)
        expected = theirs(*arguments) if num_rows else torch.empty(0, HIDDEN, dtype=dtype)
        torch.testing.assert_close(ours(*arguments), expected, rtol=0, atol=TOLERANCES[dtype] * 4)
    x, _, weights = arguments
    to_one = torch.tensor([[2, 1]]).expand(len(x), -1)  # so that two get no row at all
    torch.testing.assert_close(ours(x, to_one, weights), theirs(x, to_one, weights), rtol=0, atol=TOLERANCES[dtype] * 4)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@torch.inference_mode()
def test_experts_of_all_layers_are_replaced_and_their_stacked_weights_left_nowhere(model_type):
    model = of_architecture(model_type)
    num_stacked = sum(has_experts(module) for module in model.modules())
    assert num_stacked >= NUM_LAYERS - 1
    linears = replace_modules(model, Pass())
    experts = [module for module in model.modules() if type(module) is Experts]
    assert len(experts) == num_stacked
    assert not any(parameter.dim() == 3 for parameter in model.parameters())
    ids = {id(linear) for linear in linears}
    assert all(id(linear) in ids for layer in experts for linear in layer.linears)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@torch.inference_mode()
def test_8_bits_are_those_put_into_transformers_experts(model_type):
    """Float32 and float64 may round a value to neighbours, in few rows."""
    theirs, ours = theirs_of(model_type).double(), ours_of(model_type, in_8_bits=True)
    x, chosen, weights = routed(33)
    routed_in_double = x.double(), chosen, weights.double()
    expected = experts_in_8_bits(theirs, segments_of)(*routed_in_double)
    errors, lost = (
        (y - expected).abs().amax(dim=1) / expected.abs().amax(dim=1)
        for y in (ours(x, chosen, weights), theirs(*routed_in_double))
    )
    assert errors.median() < 1e-6
    assert errors.max() < lost.median()
    assert lost.median() > 1e-2  # it is 8 bits that were put in


@pytest.mark.parametrize("model_type", ["olmoe", "gpt_oss"])
@torch.inference_mode()
def test_in_8_bits_no_float_weight_stays(model_type):
    experts = ours_of(model_type, in_8_bits=True)
    assert all(linear.weight.untyped_storage().nbytes() == 0 for linear in experts.linears)
    assert {linear.name for linear in experts.linears} == {"96x32 int8", "32x48 int8"}
    assert not any(parameter.numel() for parameter in experts.parameters())


@pytest.mark.parametrize("model_type", ["olmoe", "gpt_oss"])
@torch.inference_mode()
def test_in_8_bits_a_row_s_bits_do_not_depend_on_the_rows_beside_it(model_type):
    experts = ours_of(model_type, in_8_bits=True)
    for num_rows in (1, 2, 5, 64, 257):
        arguments = routed(num_rows)
        together = experts(*arguments)
        for row in {0, num_rows // 2, num_rows - 1}:
            alone = experts(*(tensor[row : row + 1] for tensor in arguments))
            assert torch.equal(alone[0], together[row])
        backwards = experts(*(tensor.flip(0) for tensor in arguments))
        assert torch.equal(backwards.flip(0), together)


@torch.inference_mode()
def test_experts_of_the_last_layer_work_on_the_rows_that_go_on_alone():
    model, current = of_architecture("mixtral"), Pass()
    replace_modules(model, current)
    last = [module for module in model.modules() if type(module) is LastRows and type(module.module) is Experts]
    assert len(last) == 1
    x, chosen, weights = routed(6)
    whole = last[0](x, chosen, weights)
    seen = []
    last[0].module.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    current.rows = torch.tensor([4, 1], dtype=torch.int32)
    part = last[0](x, chosen, weights)
    assert seen == [2]
    torch.testing.assert_close(part[[1, 4]], whole[[1, 4]])
    assert part[[0, 2, 3, 5]].abs().max() == 0


def doubled(experts: nn.Module) -> None:
    forward = experts.forward
    experts.forward = lambda *arguments: 2 * forward(*arguments)


def with_another_parameter(experts: nn.Module) -> None:
    experts.scale = nn.Parameter(torch.ones(1))


def with_an_expert_swapped(experts: nn.Module) -> None:
    forward, order = experts.forward, torch.tensor([1, 0, 2, 3])
    experts.forward = lambda x, chosen, weights: forward(x, order[chosen], weights)


def in_another_shape(experts: nn.Module) -> None:
    experts.down_proj = nn.Parameter(experts.down_proj[:, :, 1:].clone())


@pytest.mark.parametrize("change", [doubled, with_another_parameter, with_an_expert_swapped, in_another_shape])
@torch.inference_mode()
def test_what_is_another_function_stays_as_it_is(change):
    theirs = theirs_of("mixtral")
    change(theirs)
    names = set(dict(theirs.named_parameters()))
    assert stacked_experts(theirs, routed(3), Pass()) is None
    assert set(dict(theirs.named_parameters())) == names


@pytest.mark.parametrize(
    "arguments",
    [
        routed(3)[:2],
        (routed(3)[0][None], *routed(3)[1:]),
        (routed(3)[0], routed(3)[2], routed(3)[1]),
        (routed(3)[0], *routed(4)[1:]),
        (*routed(3)[:2], None),
    ],
    ids=["two", "three dimensions", "swapped", "other rows", "None"],
)
@torch.inference_mode()
def test_a_call_of_another_kind_leaves_them_as_they_are(arguments):
    assert stacked_experts(theirs_of("mixtral"), arguments, Pass()) is None


@pytest.mark.parametrize(
    ("gate", "is_silu"),
    [
        (lambda x: nn.functional.silu(x[:, :2]) * x[:, 2:], True),
        (lambda x: nn.functional.silu(x[:, ::2]) * x[:, 1::2], False),  # interleaved
        (lambda x: nn.functional.silu(x[:, :2].clamp(max=7)) * x[:, 2:].clamp(-7, 7), False),  # as gpt-oss does
        (lambda x: nn.functional.gelu(x[:, :2]) * x[:, 2:], False),
    ],
)
def test_a_gate_is_ours_where_it_is_the_same_for_large_numbers_too(gate, is_silu):
    assert is_silu_and_mul(gate) == is_silu


PEAK = """
import re, sys
from pathlib import Path
import torch
from batchllm.models.backend import describe_model, load_model

def peak_bytes():  # since this program began, which getrusage's is not
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

path = Path(sys.argv[1])
config = describe_model(path)
before = peak_bytes()
load_model(config, path, torch.bfloat16, torch.device("cpu"), "int8").pack_weights()
print((peak_bytes() - before) / (2 * config.num_parameters))
"""


@pytest.mark.full
def test_weights_are_in_memory_once_while_they_are_read_and_put_in_8_bits(tmp_path):
    """400 MB, beside which a layer, the mapped file and what a first product takes are small."""
    sizes = {"hidden_size": 512, "moe_intermediate_size": 512, "num_experts": 64, "num_local_experts": 64}
    directory = tiny.save(of_architecture("qwen3_moe", **sizes).bfloat16(), tmp_path / "model")
    command = [sys.executable, "-c", PEAK, str(directory)]
    share = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 1 < share < 1.9
