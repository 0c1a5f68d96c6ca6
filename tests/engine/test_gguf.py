"""GGUF files: what they hold runs as transformers runs it on the same weights, and what is wrong with one is named."""

import dataclasses
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from batchllm import LLM, SamplingParams
from batchllm.models.config import ModelConfig, model_files, resolve_model, sampling_defaults
from batchllm.models.decoder import Model
from batchllm.models.gguf_file import SUPPORTED_TYPES
from batchllm.models.gguf_tensors import halves
from batchllm.models.weights import WeightReader
from tests.engine import tiny
from tests.engine.gguf_models import WIDE, of_type, write_gguf
from tests.engine.teacher import assert_logits_agree, our_logits, transformers_logits
from tests.engine.test_families import TOLERANCE, job

NOT_IN_GGUF = ("window", "smollm3", "yarn-scaled")  # or otherwise than in config.json
FAMILIES = {name: family for name, family in tiny.FAMILIES.items() if not any(other in name for other in NOT_IN_GGUF)}
FAMILIES["smollm3"] = tiny.Family("SmolLM3", tiny.PADDED | {"num_hidden_layers": 4, "no_rope_layer_interval": 4})
Q_PROJ, DOWN = "blk.1.attn_q.weight", "blk.1.ffn_down.weight"


def assert_answers_agree(path: Path, reference: torch.nn.Module) -> None:
    prompts, continuations = job()
    ours = our_logits(LLM(path, dtype="float32", page_size=4, max_batch_tokens=64), prompts, continuations)
    assert_logits_agree(ours, transformers_logits(reference, prompts, continuations), TOLERANCE)


def load(path: Path) -> Model:
    with WeightReader(path, torch.float32) as reader:
        return Model(ModelConfig.from_directory(path), reader)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "tiny.gguf", tiny.FAMILIES["llama"].model())
    return tmp_path / "tiny.gguf"


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_every_family_equal_transformers(tmp_path, family):
    reference = write_gguf(tmp_path / "tiny.gguf", FAMILIES[family].model())
    assert_answers_agree(tmp_path / "tiny.gguf", reference)


@pytest.mark.parametrize("kind", SUPPORTED_TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("architecture", ["Llama", "Qwen3"])
def test_logits_of_every_type_equal_transformers_on_the_same_weights(tmp_path, monkeypatch, architecture, kind):
    monkeypatch.setattr("batchllm.models.weights.READ_AT_ONCE", 1)  # 32 rows
    reference = write_gguf(tmp_path / "tiny.gguf", tiny.Family(architecture, WIDE).model(), of_type(kind))
    assert_answers_agree(tmp_path / "tiny.gguf", reference)


def test_the_metadata_say_what_config_json_would(tmp_path):
    model = tiny.FAMILIES["llama-llama3-rope"].model()
    write_gguf(tmp_path / "tiny.gguf", model)
    config = ModelConfig.from_directory(tmp_path / "tiny.gguf")
    of_directory = ModelConfig.from_directory(tiny.save(model, tmp_path / "model"))
    assert config == dataclasses.replace(of_directory, dtype="bfloat16")


def test_8_bits_are_made_of_a_gguf_file_as_of_a_directory(path, tmp_path):
    prompts, _ = job()
    directory = tiny.save(tiny.FAMILIES["llama"].model(), tmp_path / "model")
    params = SamplingParams(temperature=0, max_tokens=8)
    answers = [LLM(model, quantize="int8").generate(prompts, params, use_tqdm=False) for model in (path, directory)]
    ours, theirs = ([output.outputs[0].token_ids for output in outputs] for outputs in answers)
    assert ours == theirs


def test_all_ends_of_a_turn_end_an_answer(tmp_path):
    ends = {f"tokenizer.ggml.{name}_token_id": token for name, token in (("eot", 3), ("eom", 0))}
    write_gguf(tmp_path / "tiny.gguf", tiny.FAMILIES["llama"].model(), metadata=ends)
    assert ModelConfig.from_directory(tmp_path / "tiny.gguf").eos_token_ids == (tiny.EOS, 3, 0)


def test_of_what_lies_beside_the_file_nothing_is_read(path):
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (path.parent / name).write_text("{")
    assert sampling_defaults(path) == ({}, {})
    assert LLM(path, dtype="float32").generate("Hello", use_tqdm=False)[0].prompt_token_ids[0] == tiny.BOS


def test_a_model_is_a_gguf_file(path):
    assert resolve_model(path) == resolve_model(str(path)) == path
    assert model_files(path) == [path]
    with pytest.raises(FileNotFoundError, match=r"other\.gguf': no such directory"):
        resolve_model(path.with_name("other.gguf"))


@pytest.mark.parametrize("with_config", [False, True])
def test_a_directory_with_a_gguf_file_names_it(path, with_config):
    if with_config:
        tiny.FAMILIES["llama"].model().config.save_pretrained(path.parent)
    with pytest.raises(FileNotFoundError, match=f"^{path.parent}.*tiny.gguf.*: give that file as the model$"):
        load(path.parent)


def test_rotary_rows_go_back_to_halves():
    # One head of 4 rows: GGUF holds the pairs (0, 2), (1, 3) side by side.
    assert halves(torch.tensor([[0], [2], [1], [3]]), 1).ravel().tolist() == [0, 1, 2, 3]


def parts_of(folder: Path) -> list[Path]:
    write_gguf(folder / "tiny", tiny.FAMILIES["llama"].model(), max_tensors_per_file=8)
    return sorted(folder.glob("tiny-*-of-*.gguf"))


def test_a_model_in_several_files_is_read_by_the_first(tmp_path, path):
    parts = parts_of(tmp_path)
    assert len(parts) == 3
    assert model_files(parts[0]) == parts
    whole, split = load(path), load(parts[0])
    assert torch.equal(whole.layers[1].down.weight, split.layers[1].down.weight)
    assert torch.equal(whole.lm_head.weight, split.lm_head.weight)


def test_a_part_that_is_missing_or_not_the_first_is_named(tmp_path):
    first, second, third = parts_of(tmp_path)
    with pytest.raises(ValueError, match=f"^{second}: split.no: expected 0, that of the first .*, got 1$"):
        load(second)
    renamed = Path(shutil.copy(first, tmp_path / "renamed.gguf"))
    with pytest.raises(ValueError, match=f"^{renamed}: split.count: expected 1, as the file's name says, got 3$"):
        load(renamed)
    shutil.copy(second, third)
    with pytest.raises(ValueError, match=f"^{third}: tensor .* is in {second.name}, too$"):
        load(first)
    third.unlink()
    with pytest.raises(FileNotFoundError, match=f"^{third}: no such file; it is number 3 of 3 that are one model$"):
        load(first)


@pytest.mark.parametrize("size", [0, 3, 8, 20, 100, 500, 1500, 5000, -1])
def test_a_file_that_is_cut_off_says_so(path, size):
    data = path.read_bytes()
    path.write_bytes(data[:size])
    with pytest.raises(ValueError, match=rf"^{path}: (cut off: |not a GGUF file: )"):
        load(path)


@pytest.mark.parametrize(
    ("place", "data", "message"),
    [
        (0, b"PK\3\4", r"not a GGUF file: it begins with b'PK\\x03\\x04'"),
        (4, struct.pack("<I", 1), "GGUF version 1; expected one of 2, 3, little-endian"),
        (4, struct.pack(">I", 3), "GGUF big-endian, or of a version 50331648; expected one of 2, 3, little-endian"),
        (8, struct.pack("<Q", 1 << 60), "cut off: the file ends within its header"),
        (16, struct.pack("<Q", 1 << 60), "cut off: the file ends within its header"),
        (24, struct.pack("<Q", 1 << 63), "cut off: the file ends within its header"),
    ],
)
def test_a_header_that_is_none_is_named(path, place, data, message):
    content = bytearray(path.read_bytes())
    content[place : place + len(data)] = data
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        load(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.block_count": None}, "llama.block_count|num_hidden_layers: expected a positive integer, got None"),
        ({"llama.context_length": "long"}, "llama.context_length: expected a positive integer, got 'long'"),
        ({"llama.feed_forward_length": [48, 48]}, r"llama.feed_forward_length: expected a positive .*, got \[48, 48\]"),
        ({"llama.attention.value_length": 4}, "llama.attention.value_length: expected 8, as the keys have, got 4"),
        ({"llama.attention.sliding_window": 16}, "llama.attention.sliding_window: 16 is less than the context"),
        ({"llama.rope.dimension_count": 4}, "partial_rotary_factor: expected 1.0, got 0.5"),
        ({"llama.rope.freq_base": "big"}, "llama.rope.freq_base: expected a positive number in float32, got 'big'"),
        ({"llama.rope.scaling.type": "longrope"}, "rope type 'longrope' is not supported"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.original_context_length: expected a positive int"),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_beta_fast": 16.0},
            "llama.rope.scaling.yarn_beta_fast is not supported",
        ),
        ({"llama.expert_count": 8}, "num_experts: mixture-of-experts models are not supported"),
        ({"general.alignment": 0}, "general.alignment: expected a positive integer, got 0"),
        ({"split.tensors.count": 9}, "split.tensors.count: expected 21, as many as there are, got 9"),
        ({"tokenizer.ggml.eos_token_id": "end"}, r"eos_token_id: expected a token id or a list of them, got \['end'\]"),
    ],
)
def test_metadata_that_are_wrong_or_not_supported_are_named(tmp_path, metadata, message):
    write_gguf(tmp_path / "tiny.gguf", tiny.FAMILIES["llama"].model(), metadata=metadata)
    with pytest.raises(ValueError, match=f"^{tmp_path}/tiny.gguf: ({message})"):
        load(tmp_path / "tiny.gguf")


def test_an_architecture_that_is_not_supported_is_named(path):
    path.write_bytes(path.read_bytes().replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0bloom", 1))
    with pytest.raises(ValueError, match=f"^{path}: general.architecture: expected one of llama, .*, got bloom$"):
        load(path)


def write_tensors(path: Path, changes: dict[str, tuple[np.ndarray, Type] | None]) -> None:
    """The file with other tensors, or (None) without."""
    reader, writer = gguf.GGUFReader(path), gguf.GGUFWriter(path.with_suffix(".new"), "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    tensors: dict[str, Any] = {tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in reader.tensors}
    for name, stored in (tensors | changes).items():
        if stored is not None:
            writer.add_tensor(name, stored[0], raw_dtype=stored[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)


def stored(*shape: int, kind: Type = Type.F32) -> tuple[np.ndarray, Type]:
    return np.zeros(shape, np.float32 if kind is Type.F32 else np.uint8), kind


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({Q_PROJ: None}, "tensor model.layers.1.self_attn.q_proj.weight is missing"),
        ({"token_embd.weight": None}, "tensor token_embd.weight is missing"),
        (
            {DOWN: stored(32, 47)},
            r"tensor model.layers.1.mlp.down_proj.weight: expected shape \[32, 48\] from its metadata, got \[32, 47\]",
        ),
        (
            {DOWN: stored(32, 66, kind=Type.IQ2_XXS)},
            f"tensor {DOWN}: expected a type of F32, F16, BF16, Q4_0, .*, Q6_K, got IQ2_XXS",
        ),
        ({"blk.0.attn_sinks.weight": stored(4)}, "that its metadata does not announce: blk.0.attn_sinks.weight"),
        (
            {"blk.0.attn_v.bias": stored(16)},
            "that its metadata does not announce: model.layers.0.self_attn.v_proj.bias",
        ),
        (
            {"rope_freqs.weight": (np.float32([1, 3, 2, 8]), Type.F32)},
            r"tensor rope_freqs.weight: expected factors of rope type 'llama3', got \[1.0, 3.0, 2.0, 8.0\]",
        ),
    ],
    ids=["missing", "no embedding", "shape", "type", "unknown", "unannounced bias", "rope factors"],
)
def test_a_tensor_that_does_not_fit_is_named(path, changes, message):
    write_tensors(path, changes)
    with pytest.raises(ValueError, match=f"^{path}: .*{message}"):
        load(path)


def test_rows_that_are_no_whole_blocks_are_named(path):
    write_tensors(path, {DOWN: stored(32, 34, kind=Type.Q8_0)})
    data = path.read_bytes()
    at = data.index(DOWN.encode()) + len(DOWN) + 4
    path.write_bytes(data[:at] + struct.pack("<Q", 31) + data[at + 8 :])
    with pytest.raises(
        ValueError, match=rf"^{path}: tensor {DOWN}: expected rows of whole blocks of 32 \(Q8_0\), got 31"
    ):
        load(path)


def test_no_file_stays_open(path):
    with WeightReader(path, torch.float32) as reader:
        Model(ModelConfig.from_directory(path), reader)
        assert str(path) in open_files(), "the test sees a file that is in use"
    assert str(path) not in open_files()


PEAK = """
import re, sys
from pathlib import Path
import torch
from batchllm.models.config import ModelConfig
from batchllm.models.decoder import Model
from batchllm.models.weights import WeightReader

def peak_bytes():  # since this program began, which getrusage's is not
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

path = Path(sys.argv[1])
config = ModelConfig.from_directory(path)
before = peak_bytes()
with WeightReader(path, torch.bfloat16) as reader:
    model = Model(config, reader)
print((peak_bytes() - before) / config.weight_bytes)
"""


def test_weights_are_in_memory_once_while_they_are_read(tmp_path):
    sizes = {"vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8}
    write_gguf(tmp_path / "tiny.gguf", tiny.Family("Llama", sizes).model(), of_type(Type.Q8_0), tokenizer=False)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "tiny.gguf")]
    share = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0.5 < share < 1.25


def open_files() -> str:
    handles = [os.path.realpath(handle) for handle in Path("/proc/self/fd").iterdir()]
    return "\n".join([Path("/proc/self/maps").read_text(), *handles])
