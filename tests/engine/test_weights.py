"""Weights: every tensor is checked by name and shape, and nothing of a file outlives its reading."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from batchllm.device.linear import Linear
from batchllm.models.config import ModelConfig
from batchllm.models.decoder import Model, inv_freq
from batchllm.models.rope import Rotation
from batchllm.models.weights import WeightReader
from tests.engine import tiny

INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Model:
    with WeightReader(directory, dtype) as reader:
        return Model(ModelConfig.from_directory(directory), reader)


def tensors_of(model: Model) -> list[torch.Tensor]:
    layers = [
        tensor
        for layer in model.layers
        for part in vars(layer).values()
        for tensor in ([part.weight, part.bias] if isinstance(part, Linear) else [part])
    ]
    return [tensor for tensor in (model.embedding, model.norm, model.lm_head.weight, *layers) if tensor is not None]


@pytest.fixture
def directory(tiny_model, tmp_path) -> Path:
    """A private copy of the tiny Llama in one file."""
    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))


@pytest.fixture
def sharded(tmp_path) -> Path:
    """The same model in several files."""
    directory = tiny.save(tiny.FAMILIES["llama"].model(), tmp_path / "sharded", max_shard_size="20KB")
    assert len(list(directory.glob("*.safetensors"))) >= 3
    return directory


def rewrite(directory: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Replaces, adds, or (None) removes tensors of model.safetensors."""
    path = directory / "model.safetensors"
    tensors = load_file(path) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def test_a_scalar_is_a_tensor_like_others(directory: Path) -> None:
    """Apertus has two per layer."""
    rewrite(directory, {"scalar": torch.tensor(0.5)})
    with WeightReader(directory, torch.bfloat16) as reader:
        scalar = reader.take("scalar")
        assert (scalar.shape, scalar.dtype, scalar.item()) == ((), torch.bfloat16, 0.5)
        with pytest.raises(ValueError, match=r"tensor scalar: expected shape \[1\] from config.json, got \[\]"):
            reader.take("scalar", 1)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_tensor_of_every_family_is_taken_as_it_is(tiny_model, family):
    directory = tiny_model(family)
    model, stored = load(directory), load_file(directory / "model.safetensors")
    assert sum(tensor.numel() for tensor in tensors_of(model)) == sum(
        tensor.numel() for tensor in (*stored.values(), *([model.lm_head.weight] if "tied" in family else []))
    )
    assert torch.equal(model.layers[1].down.weight, stored["model.layers.1.mlp.down_proj.weight"])
    parts = [stored[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(model.layers[0].qkv.weight, torch.cat(parts))
    assert (model.lm_head.weight is model.embedding) == ("tied" in family)


def test_shards_equal_one_file(directory, sharded):
    for whole, part in zip(tensors_of(load(directory)), tensors_of(load(sharded)), strict=True):
        assert torch.equal(whole, part)


@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_stored_floats_are_rounded_once_to_the_dtype_asked_for(directory, source, target):
    path = directory / "model.safetensors"
    save_file({name: tensor.to(source) for name, tensor in load_file(path).items()}, path)
    model = load(directory, target)
    assert {tensor.dtype for tensor in tensors_of(model)} == {target}
    assert torch.equal(model.norm, load_file(path)[NORM].to(target))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({Q_PROJ: None}, f"^{{model}}: tensor {Q_PROJ} is missing$"),
        (
            {Q_PROJ: torch.zeros(32, 31)},
            rf"{{file}}: tensor {Q_PROJ}: expected shape \[32, 32\] from config.json, got \[32, 31\]",
        ),
        (
            {NORM: torch.zeros(32, 1)},
            rf"{{file}}: tensor {NORM}: expected shape \[32\] from config.json, got \[32, 1\]",
        ),
        ({NORM: torch.zeros(32, dtype=torch.int64)}, f"{{file}}: tensor {NORM}: dtype torch.int64 is not supported"),
        ({NORM: torch.zeros(32, dtype=torch.uint8)}, f"{{file}}: tensor {NORM}: dtype torch.uint8 is not supported"),
        ({NORM: torch.zeros(32).to(torch.float8_e4m3fn)}, f"tensor {NORM}: dtype torch.float8_e4m3fn is not supported"),
        (
            {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)},
            "does not announce: model.layers.0.self_attn.q_proj.bias$",
        ),
        (
            {f"model.layers.{i}.self_attn.sinks": torch.zeros(4) for i in range(5)},
            "does not announce: model.layers.0.*layers.2.self_attn.sinks and 2 more$",
        ),
    ],
    ids=["missing", "shape", "rank", "int64", "uint8", "float8", "unannounced bias", "many unknown"],
)
def test_a_tensor_that_does_not_fit_the_config_is_named(directory, changes, message):
    rewrite(directory, changes)
    message = message.format(model=directory, file=directory / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load(directory)


def test_no_memory_is_taken_for_a_shape_that_is_not_the_files(directory):
    with (
        WeightReader(directory, torch.float32) as reader,
        pytest.raises(ValueError, match=r"expected shape \[32, 1125899906842624\] from config.json, got \[32, 32\]"),
    ):
        reader.take_stacked({Q_PROJ: 32}, 1 << 50)


@pytest.mark.parametrize("missing", ["q_proj.bias", "v_proj.bias", "o_proj.bias", "mlp.down_proj.bias"])
def test_a_bias_that_the_config_announces_must_be_there(tiny_model, tmp_path, missing):
    directory = Path(shutil.copytree(tiny_model("llama-bias"), tmp_path / "model"))
    names = [name for name in load_file(directory / "model.safetensors") if name.endswith(missing)]
    rewrite(directory, dict.fromkeys(names))
    with pytest.raises(ValueError, match=f"tensor model.layers.0.*{missing} is missing"):
        load(directory)


def test_what_no_decoder_needs_is_passed_over(tiny_model, tmp_path):
    directory = Path(shutil.copytree(tiny_model("llama-tied"), tmp_path / "model"))
    inv_freq = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    embedding = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(directory, {"lm_head.weight": embedding.clone(), **inv_freq})
    model = load(directory)
    assert model.lm_head.weight is model.embedding


@pytest.mark.parametrize("family", ["llama-tied", "qwen2-tied"])
def test_a_head_that_is_said_to_be_tied_but_is_another_is_refused(tiny_model, tmp_path, family):
    directory = Path(shutil.copytree(tiny_model(family), tmp_path / "model"))
    rewrite(directory, {"lm_head.weight": torch.ones(tiny.VOCAB_SIZE, 32)})
    with pytest.raises(ValueError, match=r"tensor lm_head.weight differs from model.embed_tokens.weight, which config"):
        load(directory)


@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("where", ["single", "shard"])
def test_weights_that_are_no_regular_file_are_named_and_not_waited_for(directory, sharded, where, kind):
    directory = directory if where == "single" else sharded
    path = sorted(directory.glob("*.safetensors"))[-1]
    path.unlink()
    kind(path)
    with pytest.raises(ValueError, match=f"^{path}: not a regular file$"):
        load(directory)


def test_a_whole_file_is_read_though_a_stale_index_lies_beside_it(directory):
    stale = {"weight_map": {name: "model-00001-of-00002.safetensors" for name in (NORM, Q_PROJ)}}
    (directory / INDEX).write_text(json.dumps(stale))
    expected = load_file(directory / "model.safetensors")[NORM]
    assert torch.equal(load(directory).norm, expected)


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        ("../model/model.safetensors", "'../model/model.safetensors'"),
        ("/etc/passwd", "'/etc/passwd'"),
        ("shards/a.safetensors", "'shards/a.safetensors'"),
        (5, "5"),
        (None, "None"),
        ("a\0b", r"'a\\x00b'"),
    ],
)
def test_an_index_names_files_of_its_directory(sharded, file, shown):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][NORM] = file
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"{INDEX}: .*weight_map.{NORM}: expected the name of a file.*, got {shown}$"):
        load(sharded)


def test_rotary_angles_must_be_finite():
    with pytest.raises(ValueError, match=r"rope_theta: the angles of 1.2e-38 are not finite in float32"):
        inv_freq(Rotation(theta=1.2e-38), head_dim=64, max_model_len=10_000)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[:40],
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"[" + data[9:],
        lambda data: b"<!DOCTYPE html><html>Not Found</html>",
    ],
    ids=["empty", "no header", "half header", "a byte short", "half", "huge header", "not JSON", "a web page"],
)
@pytest.mark.parametrize("where", ["single", "shard"])
def test_a_damaged_file_is_named(directory, sharded, where, damage):
    directory = directory if where == "single" else sharded
    path = sorted(directory.glob("*.safetensors"))[-1]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path}: "):
        load(directory)


def test_a_missing_shard_is_named(sharded):
    path = sorted(sharded.glob("*.safetensors"))[1]
    path.unlink()
    with pytest.raises(ValueError, match=f"{path}: cannot read tensor model"):
        load(sharded)


def test_a_tensor_that_its_shard_does_not_hold_is_named(sharded):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][NORM] = index["weight_map"][Q_PROJ]
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"cannot read tensor {NORM}: "):
        load(sharded)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": ["a"]}', '{"weight_map": null}', "[" * 100_000]
)
def test_a_broken_index_is_named(sharded, text):
    (sharded / INDEX).write_text(text)
    with pytest.raises(ValueError, match=f"{sharded / INDEX}: not a safetensors index"):
        load(sharded)


@pytest.mark.parametrize(
    ("file", "hint"),
    [
        (None, "$"),
        ("pytorch_model.bin", "; found pytorch_model.bin, which must be converted to safetensors$"),
        ("model-q4.gguf", "; found model-q4.gguf: give that file as the model$"),
    ],
)
def test_a_directory_without_safetensors_says_what_it_has(directory, file, hint):
    (directory / "model.safetensors").unlink()
    if file:
        (directory / file).touch()
    with pytest.raises(FileNotFoundError, match=f"^{directory}: no model.safetensors and no {INDEX}{hint}"):
        load(directory)


def is_mapped_or_open(directory: Path) -> bool:
    handles = [os.path.realpath(handle) for handle in Path("/proc/self/fd").iterdir()]
    return str(directory) in "\n".join([Path("/proc/self/maps").read_text(), *handles])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_file_stays_mapped_or_open(sharded, dtype):
    with WeightReader(sharded, dtype) as reader:
        model = Model(ModelConfig.from_directory(sharded), reader)
        assert is_mapped_or_open(sharded), "the test sees a file that is in use"
    assert not is_mapped_or_open(sharded)
    assert tensors_of(model), "what was read outlives the files"


def test_no_file_stays_mapped_when_loading_fails(directory):
    rewrite(directory, {NORM: None})
    with pytest.raises(ValueError, match="is missing"):
        load(directory)
    assert not is_mapped_or_open(directory)
