"""Which of transformers' modules ours take the place of, and that they give the same."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from batchllm.models.transformers_modules import (
    FusedRmsNorm,
    GatedMlp,
    LastRows,
    PackedLinear,
    Pass,
    rms_norm,
)
from batchllm.models.transformers_replacement import replace_modules
from tests.engine.architectures import NUM_LAYERS, of_architecture

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(type(module) is kind for module in model.modules())


@pytest.mark.parametrize(
    ("model_type", "num_products", "num_norms", "num_mlps"),
    [
        ("llama", 2 * NUM_LAYERS + 1, 2 * NUM_LAYERS + 1, NUM_LAYERS),  # qkv, o; the output layer
        ("qwen3", 2 * NUM_LAYERS + 1, 4 * NUM_LAYERS + 1, NUM_LAYERS),
        ("phi3", 2 * NUM_LAYERS + 1, 2 * NUM_LAYERS + 1, NUM_LAYERS),
        ("gemma2", 4 * NUM_LAYERS + 2, 4 * NUM_LAYERS + 1, 0),  # a gate of another function
        ("cohere", 2 * NUM_LAYERS + 1, 0, NUM_LAYERS),  # norms that take the mean away
        ("gpt2", 4 * NUM_LAYERS + 1, 0, 0),
    ],
)
@torch.inference_mode()
def test_what_is_ours_is_counted(model_type, num_products, num_norms, num_mlps):
    model = of_architecture(model_type)
    linears = replace_modules(model, Pass())
    assert (count(model, FusedRmsNorm), count(model, GatedMlp)) == (num_norms, num_mlps)
    assert len(linears) == num_products + 2 * num_mlps
    assert count(model, nn.Linear) == 0
    shapes = [linear.weight.shape for linear in linears]
    assert len(shapes) == len({id(linear.weight) for linear in linears})


@torch.inference_mode()
def test_products_of_one_input_are_one(monkeypatch):
    model = of_architecture("olmo2")
    linears = replace_modules(model, Pass())
    parts = [module for module in model.modules() if isinstance(module, PackedLinear)]
    joined = [(a, b) for a, b in pairwise(parts) if a.product is b.product]
    assert len(joined) == 2 * NUM_LAYERS  # q and k, k and v
    attention = model.model.layers[0].self_attn
    x = torch.randn(1, 5, 32)
    calls = []
    linear = attention.q_proj.product.linear
    monkeypatch.setattr(attention.q_proj.product, "linear", lambda x: calls.append(x) or linear(x))
    for _ in range(2):
        parts = [projection(x) for projection in (attention.q_proj, attention.k_proj, attention.v_proj)]
        assert torch.equal(torch.cat(parts, dim=-1)[0], linear(x[0]))
    assert len(calls) == 2
    assert any(linear is one for one in linears)


@torch.inference_mode()
def test_products_say_the_shape_and_type_of_the_weights_whose_place_they_take():
    """Routers of experts ask for them."""
    model = of_architecture("olmo2").bfloat16()
    before = {name: module.weight.shape for name, module in model.named_modules() if type(module) is nn.Linear}
    replace_modules(model, Pass())
    ours = {name.removesuffix(".module"): m for name, m in model.named_modules() if isinstance(m, PackedLinear)}
    assert {name: module.weight.shape for name, module in ours.items()} == {name: before[name] for name in ours}
    assert {module.weight.dtype for module in ours.values()} == {torch.bfloat16}
    assert len(ours) > 4 * NUM_LAYERS


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2"])
@torch.inference_mode()
def test_the_last_layer_works_on_the_rows_that_go_on_alone(model_type):
    model, current = of_architecture(model_type), Pass()
    replace_modules(model, current)
    last = [module for module in model.modules() if isinstance(module, LastRows)]
    x = torch.randn(1, 6, last[0].module(torch.zeros(1, 1, 32)).shape[-1])
    assert len(last) == {"llama": 2, "gemma2": 4, "gpt2": 3}[model_type]
    whole = last[0](x)
    current.rows = torch.tensor([4, 1], dtype=torch.int32)
    part = last[0](x)
    torch.testing.assert_close(part[:, [1, 4]], whole[:, [1, 4]])
    assert part[:, [0, 2, 3, 5]].abs().max() == 0


class Norm(nn.Module):
    """As transformers writes them, or not."""

    def __init__(self, offset: float = 0.0, eps_inside: bool = True, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 8).to(dtype), requires_grad=False)
        self.offset, self.eps_inside, self.eps = offset, eps_inside, 1e-5

    def forward(self, x):
        mean = x.float().square().mean(-1, keepdim=True)
        root = (mean + self.eps).sqrt() if self.eps_inside else mean.sqrt() + self.eps
        return (x / root * (self.offset + self.weight.float())).to(x.dtype)


@pytest.mark.parametrize(
    ("norm", "is_ours"),
    [
        (Norm(), True),
        (Norm(offset=1.0), True),
        (Norm(offset=0.5), False),
        (Norm(eps_inside=False), False),
        (Norm(dtype=torch.bfloat16), True),
        (Norm(offset=1.0, dtype=torch.bfloat16), False),  # 1 + weight is no bfloat16
        (nn.LayerNorm(8, bias=False), False),
    ],
)
@torch.inference_mode()
def test_a_norm_is_ours_where_it_gives_the_same(norm, is_ours):
    assert (rms_norm(norm, Pass()) is not None) == is_ours
