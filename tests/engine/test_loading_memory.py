"""While a model is loaded, no second copy of its weights is in memory, nor one of a layer, whatever form they have."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type

from tests.engine import tiny
from tests.engine.gguf_models import of_type, write_gguf
from tests.engine.quantized_models import gptq, save_quantized
from tests.engine.test_quantized import GPTQ

# One layer whose gate and up take 134 MB in float32, and down half of that.
WIDE = {"vocab_size": 2000, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 1, "head_dim": 64}
FAMILY = tiny.Family("Llama", WIDE)
EXTRA_BYTES = 128e6  # beside the weights: down in float32, blocks of the others, what is mapped, the allocator's rest

LOAD = """
import re, sys
from pathlib import Path
import torch
from batchllm.device.int8 import Int8Linear
from batchllm.models import safetensors_files
from batchllm.models.backend import describe_model, load_model

def of_process(field):  # VmHWM: since this program began, which getrusage's is not
    return int(re.search(rf"{field}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

path, quantize = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
safetensors_files.MAPPED_BYTES = 1 << 24
config = describe_model(path)
Int8Linear(torch.ones(8, 8))(torch.ones(1, 8))  # loads code
before = of_process("VmRSS")
model = load_model(config, path, torch.bfloat16, torch.device("cpu"), quantize)
peak = of_process("VmHWM") - before
embedding_bytes = 2 * config.vocab_size * config.hidden_size
num_others = config.weight_bytes // 2 - embedding_bytes // 2
weight_bytes = embedding_bytes + num_others * (1 if quantize else 2)
print(peak - weight_bytes)
"""


def write_safetensors(directory: Path) -> Path:
    return tiny.save(FAMILY.model().bfloat16(), directory / "model")


def write_q8_0(directory: Path) -> Path:
    write_gguf(directory / "model.gguf", FAMILY.model(), of_type(Type.Q8_0), tokenizer=False)
    return directory / "model.gguf"


def write_gptq(directory: Path) -> Path:
    save_quantized(directory, FAMILY.model(), GPTQ | {"group_size": 128}, gptq(4, 128))
    return directory


@pytest.mark.parametrize("precision", [[], ["int8"]], ids=["bfloat16", "int8"])
@pytest.mark.parametrize("write", [write_safetensors, write_q8_0, pytest.param(write_gptq, marks=pytest.mark.full)])
def test_loading_takes_little_more_than_the_weights(tmp_path, write: Callable[[Path], Path], precision):
    command = [sys.executable, "-c", LOAD, str(write(tmp_path)), *precision]
    extra_bytes = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0 < extra_bytes < EXTRA_BYTES
