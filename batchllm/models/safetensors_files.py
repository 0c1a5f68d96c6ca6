"""The tensors of a Hugging Face directory's safetensors files, as they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from batchllm.models.config import CONFIG, check_regular, read_json
from batchllm.models.tensor_source import as_rows
from batchllm.text import printable

MAPPED_BYTES = 1 << 27
# Tensors that some exporters write but no decoder needs.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")


class SafetensorsFiles:
    """A TensorSource of `model.safetensors`, or of the shards that `model.safetensors.index.json` names."""

    config = CONFIG

    def __init__(self, directory: Path) -> None:
        """Raises FileNotFoundError, or ValueError for a file that is not safetensors."""
        self.files: Mapping[str, Path] = {name: directory / file for name, file in _tensor_files(directory).items()}
        self._open = ExitStack()
        self._handles: dict[Path, safe_open] = {}
        self._mapped_bytes = 0  # of what was read since the files were opened

    def shape(self, name: str) -> tuple[int, ...]:
        try:
            return tuple(self._handle(name).get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise self._unreadable(name, error) from None

    def tensor(self, name: str) -> Tensor:
        """As it is stored, mapped from the file."""
        tensor = self._map(name)
        self._mapped_bytes += tensor.nbytes
        return tensor

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        tensor = self._map(name)
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise ValueError(f"{self.files[name]}: tensor {name}: dtype {tensor.dtype} is not supported")
        rows = as_rows(tensor)[begin:end]
        self._mapped_bytes += rows.nbytes
        return rows

    def adds_nothing(self, name: str) -> bool:
        return name.endswith(IGNORED_SUFFIXES)

    def close(self) -> None:
        self._handles.clear()
        self._open.close()
        self._mapped_bytes = 0

    def _map(self, name: str) -> Tensor:
        if self._mapped_bytes > MAPPED_BYTES:
            self.close()  # frees the memory of the pages read so far
        try:
            tensor: Tensor = self._handle(name).get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise self._unreadable(name, error) from None
        return tensor

    def _handle(self, name: str) -> safe_open:
        file = self.files[name]
        if file not in self._handles:
            check_regular(file)
            self._handles[file] = self._open.enter_context(safe_open(file, framework="pt"))
        return self._handles[file]

    def _unreadable(self, name: str, error: Exception) -> ValueError:
        return ValueError(f"{self.files[name]}: cannot read tensor {name}: {printable(str(error))}")


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
    hint = ""
    if others := sorted(path.name for path in directory.glob("*.gguf")):
        hint = f"; found {others[0]}: give that file as the model"
    elif others := sorted(path.name for path in directory.glob("*.bin")):
        hint = f"; found {', '.join(others[:3])}, which must be converted to safetensors"
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
