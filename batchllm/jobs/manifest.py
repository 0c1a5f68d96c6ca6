"""Which job an output belongs to: OUT.manifest.json, or OUT/manifest.json for a directory, by which an interrupted job
recognises its own files.

A fingerprint has an entry for everything that an answer depends on: the version, the input's content, the model's
files, the options. It omits what changes answers only within rounding (threads, device, sizes of pools and steps).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from batchllm.jobs.files import replace_file
from batchllm.jobs.line import DUPLICATE_ID, LineError
from batchllm.jobs.openai_records import new_job_id
from batchllm.models.config import is_hub_id, model_files, resolve_model
from batchllm.models.gguf_file import is_gguf

Fingerprint = dict[str, str | int | float | bool | None]
SAMPLES, SAMPLE_BYTES = 64, 4096  # read of a weight file, beside its size and its header
MAX_HEADER_BYTES = 1 << 27  # of a safetensors file
GGUF_HEADER_BYTES = 1 << 24  # as much as a large vocabulary takes; the file does not tell the length of its header
SHOWN_CHARACTERS = 60


class Manifest(msgspec.Struct, frozen=True):
    job_id: str  # in every record of the job
    fingerprint: Fingerprint
    num_lines: int  # that get an answer or an error
    # Errors for a custom_id that an earlier line has. They are in the errors file before the first answer, so every
    # remaining line has a custom_id of its own.
    num_duplicates: int

    @classmethod
    def new(cls, fingerprint: Fingerprint, num_requests: int, errors: Sequence[LineError]) -> Manifest:
        """The manifest of a new job: this many of its lines can be answered, and the others have these errors."""
        num_duplicates = sum(error.code == DUPLICATE_ID for error in errors)
        return cls(new_job_id(), fingerprint, num_requests + len(errors), num_duplicates)


def manifest_path(output: Path) -> Path:
    return output / "manifest.json" if output.is_dir() else output.with_name(f"{output.name}.manifest.json")


def read_manifest(output: Path) -> Manifest | None:
    """None if there is none. Raises ValueError for a file that is not a manifest."""
    path = manifest_path(output)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"manifest {str(path)!r}: {error}") from None


def write_manifest(output: Path, manifest: Manifest) -> None:
    replace_file(manifest_path(output), msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")


def differences(there: Fingerprint, here: Fingerprint) -> list[str]:
    """The differences between two jobs, in words."""
    return [
        f"{name} is {_shown(there, name)} there and {_shown(here, name)} here"
        for name in [*there, *(here.keys() - there.keys())]
        if there.get(name) != here.get(name) or (name in there) != (name in here)
    ]


def _shown(fingerprint: Fingerprint, name: str) -> str:
    if name not in fingerprint:
        return "nothing"
    text = str(fingerprint[name])
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def fingerprint_model(model: str | Path) -> Fingerprint:
    """The files of a model, by name; those of a hub id are fetched. Of weights the size, the
    header (names, types and shapes of tensors) and SAMPLES pieces of SAMPLE_BYTES count; of other files every byte
    does."""
    directory = resolve_model(model) if is_hub_id(model) else model
    return {f"model {path.name}": _digest_of(path) for path in sorted(set(model_files(directory)))}


def fingerprint_file(path: Path) -> str:
    return f"{path.stat().st_size:,} bytes, SHA-256 {_hexdigest(_whole(path))}"


def _digest_of(path: Path) -> str:
    if path.suffix != ".safetensors" and not is_gguf(path):
        return fingerprint_file(path)
    return f"{path.stat().st_size:,} bytes, samples {_hexdigest(_samples(path))}"


def _hexdigest(pieces: Iterator[bytes]) -> str:
    """32 of the 64 digits distinguish any two files that nobody made to collide."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()[:32]


def _whole(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            yield piece


def _samples(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        opening = file.read(8)
        yield opening
        num_header_bytes = int.from_bytes(opening, "little")
        yield file.read(GGUF_HEADER_BYTES if is_gguf(path) else min(num_header_bytes, MAX_HEADER_BYTES))
        for sample in range(SAMPLES):
            file.seek(sample * max(size - SAMPLE_BYTES, 0) // (SAMPLES - 1))
            yield file.read(SAMPLE_BYTES)
