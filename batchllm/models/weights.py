"""Reads the tensors of a Hugging Face directory from safetensors, one at a time, checked by name and shape."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from batchllm.models.config import check_regular, read_json
from batchllm.text import printable

# Tensors that some exporters write and no decoder needs.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")


class WeightReader:
    """The tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.

    `take` copies a tensor out of the memory-mapped file, so nothing of the file stays mapped after `close`;
    `finish` raises if the checkpoint holds tensors that nobody took: a bias that the config does not
    announce would otherwise be dropped in silence.
    """

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.directory = directory
        self.dtype = dtype
        self.device = device
        self._files = ExitStack()
        self._handles: dict[str, safe_open] = {}
        self._file_of = _tensor_files(directory)
        self._left = set(self._file_of)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """A copy of tensor `name`, [*shape], in `self.dtype` on `self.device`."""
        if name not in self._file_of:
            raise ValueError(f"{self.directory}: tensor {name} is missing")
        file = self._file_of[name]
        try:
            if file not in self._handles:
                check_regular(self.directory / file)
                self._handles[file] = self._files.enter_context(safe_open(self.directory / file, framework="pt"))
            tensor = self._handles[file].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self.directory / file}: cannot read tensor {name}: {printable(str(error))}") from None
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{self.directory / file}: tensor {name}: expected shape {list(shape)} from config.json, "
                f"got {list(tensor.shape)}"
            )
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise ValueError(f"{self.directory / file}: tensor {name}: dtype {tensor.dtype} is not supported")
        self._left.discard(name)
        return torch.empty(shape, dtype=self.dtype, device=self.device).copy_(tensor)

    def drop_copy(self, name: str, tensor: torch.Tensor, of: str) -> None:
        """Drops tensor `name`, if it is stored at all, as a copy of `tensor`, which is called `of`; ValueError where it
        is another one."""
        if name in self and not torch.equal(self.take(name, *tensor.shape), tensor):
            raise ValueError(
                f"{self.directory / self._file_of[name]}: tensor {name} differs from {of}, which config.json "
                "(tie_word_embeddings) says it is"
            )

    def finish(self) -> None:
        unused = sorted(name for name in self._left if not name.endswith(IGNORED_SUFFIXES))
        if unused:
            more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
            raise ValueError(
                f"{self.directory}: the checkpoint has tensors that config.json does not announce: "
                f"{printable(', '.join(unused[:3]))}{more}"
            )

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handles.clear()
        self._files.close()


def _tensor_files(directory: Path) -> dict[str, str]:
    """Tensor name -> file name. As in transformers, an index beside a whole file is not read."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.exists():
        check_regular(single)
        try:
            with safe_open(single, framework="pt") as file:
                return dict.fromkeys(file.keys(), single.name)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{single}: not a safetensors file: {printable(str(error))}") from None
    if index.exists():
        try:
            return _weight_map(read_json(index))
        except ValueError as error:
            raise ValueError(f"{index}: not a safetensors index: {str(error).removeprefix(f'{index}: ')}") from None
    others = sorted(path.name for path in directory.glob("*.bin")) + sorted(
        path.name for path in directory.glob("*.gguf")
    )
    hint = f"; found {', '.join(others[:3])}, which must be converted to safetensors" if others else ""
    raise FileNotFoundError(f"{directory}: no model.safetensors and no model.safetensors.index.json{hint}")


def _weight_map(index: dict[str, Any]) -> dict[str, str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"weight_map: expected an object, got {weight_map!r:.80}")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or "\0" in file:
            raise ValueError(
                f"weight_map.{printable(name)}: expected the name of a file in the directory, got {file!r:.80}"
            )
    return weight_map
