"""The 8-bit decoder against transformers with 8-bit values put in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from batchllm import LLM, SamplingParams
from batchllm.device.rotation import hadamard, rotated, rotated_rows
from benchmarks.perplexity import DOCUMENTS, PRECISIONS, compared, negative_logprobs
from tests.engine import tiny
from tests.engine.put_in_8_bits import put_in_8_bits
from tests.engine.teacher import assert_logits_agree, our_logits, transformers_logits
from tests.engine.test_families import job
from tests.engine.test_int8_products import random


@pytest.mark.parametrize("size", [1, 2, 8, 9, 48, 80, 128, 576, 4096])
def test_rotations_are_orthogonal_and_leave_no_element_large(size):
    rotation = rotated(torch.eye(size))
    torch.testing.assert_close(rotation.double() @ rotation.T.double(), torch.eye(size).double(), atol=1e-5, rtol=0)
    assert rotation.abs().max() <= 1.5 / size**0.5
    x = random(3, size)
    torch.testing.assert_close(rotated(x), x @ rotation, atol=1e-4, rtol=0)
    torch.testing.assert_close(rotated_rows(x.T), rotation.T @ x.T, atol=1e-4, rtol=0)


def put_in_rotations(model, head_dim: int, num_segments: int) -> None:
    """What changes nothing, by dense matrices: norm weights and rotations into the matrices beside them."""
    decoder, of_head = model.model, rotated(torch.eye(head_dim)).double()
    of_stream = rotated(torch.eye(model.config.hidden_size)).double()

    def change(linear, weight: Tensor) -> None:
        linear.weight = torch.nn.Parameter(weight)

    def put_norm_in(norm, *linears) -> None:
        for linear in linears:
            change(linear, linear.weight * norm.weight @ of_stream)
        norm.weight.fill_(1)

    change(model.lm_head, model.lm_head.weight * decoder.norm.weight @ of_stream)
    decoder.norm.weight.fill_(1)
    change(decoder.embed_tokens, decoder.embed_tokens.weight @ of_stream)
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        put_norm_in(layer.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj)
        put_norm_in(layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj)
        num_values, num_heads = (len(attention.v_proj.weight), attention.o_proj.weight.shape[1])
        of_values = torch.block_diag(*[of_head] * (num_values // head_dim))
        of_heads = torch.block_diag(*[of_head] * (num_heads // head_dim))
        of_segments = torch.kron(
            hadamard(num_segments).double(), torch.eye(mlp.down_proj.weight.shape[1] // num_segments)
        )
        change(attention.v_proj, of_values.T @ attention.v_proj.weight)
        change(attention.o_proj, of_stream.T @ attention.o_proj.weight @ of_heads)
        change(mlp.down_proj, of_stream.T @ mlp.down_proj.weight @ of_segments)
        for linear, of in ((attention.v_proj, of_values), (attention.o_proj, of_stream), (mlp.down_proj, of_stream)):
            if linear.bias is not None:
                linear.bias.copy_(linear.bias @ of)
        mlp.down_proj.register_forward_pre_hook(lambda _, inputs, of=of_segments: (inputs[0] @ of,))


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_are_those_of_transformers_with_8_bits_put_in(tiny_model, family):
    """Float32 and float64 may round a value to neighbours, which few rows see."""
    directory = tiny_model(family)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64, attn_implementation="eager").eval()
    prompts, continuations = job()
    plain = transformers_logits(model, prompts, continuations)
    put_in_rotations(model, model.model.layers[0].self_attn.head_dim, num_segments=16)
    assert_logits_agree(transformers_logits(model, prompts, continuations), plain, 1e-4)
    put_in_8_bits(model)
    expected = transformers_logits(model, prompts, continuations)
    llm = LLM(directory, dtype="float32", quantize="int8", page_size=4, max_batch_tokens=64)
    ours = our_logits(llm, prompts, continuations)
    assert_logits_agree(ours, expected, 0.03)
    errors = torch.cat([(a - b).abs().amax(dim=-1) / b.abs().max() for a, b in zip(ours, expected, strict=True)])
    assert errors.median() < 1e-5
    lost = torch.cat([(a - b).abs().amax(dim=-1) / b.abs().max() for a, b in zip(expected, plain, strict=True)])
    assert lost.median() > 1e-3  # it is 8 bits that were put in


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_answers_do_not_depend_on_what_is_beside_them(tiny_dir, dtype):
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    prompts = tiny.shared_prompts(20)
    llm = LLM(tiny_dir, dtype=dtype, quantize="int8")
    assert llm.dtype == (torch.float32 if dtype == "float32" else torch.bfloat16)
    together = llm.generate(prompts, params, use_tqdm=False)
    for prompt, output in zip(prompts[:5], together, strict=False):
        alone = llm.generate([prompt], params, use_tqdm=False)[0]
        assert alone.outputs[0].token_ids == output.outputs[0].token_ids


@pytest.mark.full
def test_perplexity_is_at_most_1_5_percent_above_float32s(smollm2):
    paths = [path for path in sorted(DOCUMENTS.glob("*.txt")) if "questions" not in path.name]
    of_float32 = negative_logprobs(smollm2, "float32", paths)
    assert len(of_float32) == 8
    for precision in (name for name in PRECISIONS if name.startswith("int8")):
        assert compared(negative_logprobs(smollm2, precision, paths), of_float32)["percent"] < 1.5
