"""What nvcc makes of our kernels, without a GPU: registers, spills and instructions of each and the occupancy of
attention, compared with bars.json; and the inline PTX, compared with CUTLASS's.

    make sass                                  compares, and fails where a figure has changed
    python -m tests.sass.sass --update         writes the figures anew

Needs nvcc, and from PyPI nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm and nvidia-cutlass (headers only).
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BARS = HERE / "bars.json"
ARCHITECTURES = ("sm_80", "sm_90a")
HEAD_DIMS = (64, 96, 128, 256)

# Of a multiprocessor. A warp takes registers in units of 256, a block 1 KiB of shared memory beside its own.
REGISTERS = 65536
SHARED_BYTES = {"sm_80": 164 * 1024, "sm_90a": 228 * 1024}

COUNTED = {
    "CALL": r"CALL\S*",
    "BRA": r"BRA\S*",
    "LDG_16_bytes": r"LDG\.E\S*\.128",
    "LDG": "LDG",
    "STG_16_bytes": r"STG\.E\S*\.128",
    "STG": "STG",
    "local_memory": "(LDL|STL)",
}
COUNTED_IN_ATTENTION = {
    "HMMA": "HMMA",
    "LDSM": "LDSM",
    "LDGSTS_16_bytes": r"LDGSTS\.E\S*\.128",
    "LDGSTS": "LDGSTS",
    **COUNTED,
}
WORKS = {"AppendWork": "append", "MergeRowsWork": "merge_rows", "MergeWork": "merge_states", "RotateWork": "rotate",
         "SiluAndMulWork": "silu_and_mul"}  # fmt: skip


def tool(name: str) -> str:
    beside = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13" / "bin" / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        sys.exit(f"{name} is missing: pip install nvidia-cuda-{name}" if name != "nvcc" else "nvcc is not on PATH")
    return found


def run(*command: str | Path) -> str:
    # cuobjdump looks for nvdisasm on PATH.
    path = f"{Path(tool('cuobjdump')).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def compile_cubin(source: Path, architecture: str, directory: Path, *options: str | Path) -> Path:
    cubin = directory / f"{source.stem}.cubin"
    run(tool("nvcc"), "-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-I{ROOT / 'csrc'}", f"-arch={architecture}",
        *options, "-cubin", source, "-o", cubin)  # fmt: skip
    return cubin


def disassemble(cubin: Path) -> dict[str, list[str]]:
    """The instructions of each kernel."""
    functions: dict[str, list[str]] = collections.defaultdict(list)
    name = ""
    for line in run(tool("cuobjdump"), "-sass", cubin).splitlines():
        if found := re.search(r"Function : (\S+)", line):
            name = found[1]
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?;)", line):
            functions[name].append(found[1])
    return functions


def block_sizes(head_dim: int) -> dict[str, tuple[int, int]]:
    """Of each attention kernel shared bytes and threads of a block: tile_shape.h, asked of the host's compiler."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "sizes.cpp"
        source.write_text(
            '#include <cstdio>\n#include "attention/cuda/tile_shape.h"\nusing namespace batchllm::cuda;\n'
            f"int main() {{ using Narrow = TileShapes<{head_dim}>::Narrow;\n"
            f'std::printf("%d %d %d %d", kWideSharedBytes<{head_dim}>, kWideThreads, Narrow::kSharedBytes, '
            "Narrow::kThreads); }\n"
        )
        run("c++", "-std=c++20", f"-I{ROOT / 'csrc'}", source, "-o", source.with_suffix(""))
        wide_bytes, wide_threads, narrow_bytes, narrow_threads = map(int, run(source.with_suffix("")).split())
    return {"wide": (wide_bytes, wide_threads), "narrow": (narrow_bytes, narrow_threads)}


def blocks_per_multiprocessor(registers: int, shared: int, threads: int, architecture: str) -> int:
    per_warp = -(-registers * 32 // 256) * 256
    return min(REGISTERS // (per_warp * threads // 32), SHARED_BYTES[architecture] // (shared + 1024))


def count(instructions: list[str], patterns: dict[str, str]) -> dict[str, int]:
    return {
        what: sum(bool(re.search(rf"(^|\s){pattern}\b", line)) for line in instructions)
        for what, pattern in patterns.items()
    }


def compile_kernels(source: str, architecture: str, *options: str) -> list[tuple[str, dict[str, int], list[str]]]:
    """Of each kernel its name, its registers and stack_bytes, its instructions."""
    with tempfile.TemporaryDirectory() as directory:
        cubin = compile_cubin(HERE / source, architecture, Path(directory), *options)
        usage = run(tool("cuobjdump"), "-res-usage", cubin)
        functions = disassemble(cubin)
    kernels = []
    for name, instructions in functions.items():
        resources = re.search(rf"Function {name}:\s+REG:(\d+) STACK:(\d+)", usage)
        kernels.append((name, {"registers": int(resources[1]), "stack_bytes": int(resources[2])}, instructions))
    return kernels


def element_type(name: str) -> str:
    return "bfloat16" if "Bf16" in name else "float16" if "Half" in name else "float32"


def measure_attention() -> dict[str, dict[str, int]]:
    figures = {}
    for head_dim in HEAD_DIMS:
        sizes = block_sizes(head_dim)
        for architecture in ARCHITECTURES:
            kernels = compile_kernels("attention.cu", architecture, f"-DHEAD_DIM={head_dim}")
            for name, resources, instructions in kernels:
                kind = "narrow" if "narrow" in name else "wide"
                shared, threads = sizes[kind]
                figures[f"{architecture} {kind} attention head_dim {head_dim} {element_type(name)}"] = {
                    **resources,
                    "shared_bytes": shared,
                    "blocks_per_multiprocessor": blocks_per_multiprocessor(
                        resources["registers"], shared, threads, architecture
                    ),
                    **count(instructions, COUNTED_IN_ATTENTION),
                }
    return figures


def measure_norms() -> dict[str, dict[str, int]]:
    figures = {}
    for architecture in ARCHITECTURES:
        for name, resources, instructions in compile_kernels("rms_norm.cu", architecture):
            elements, is_short = re.search(r"Li(\d+)ELb([01])E", name).groups()
            shape = f"{'vectors' if elements != '1' else 'elements'} {'warp' if is_short == '1' else 'block'}"
            figures[f"{architecture} rms_norm {element_type(name)} {shape}"] = {
                **resources,
                **count(instructions, COUNTED),
            }
    return figures


def measure_layers() -> dict[str, dict[str, int]]:
    figures = {}
    for architecture in ARCHITECTURES:
        for name, resources, instructions in compile_kernels("norm_rotate_append.cu", architecture):
            lanes = re.search(r"Li(\d+)E", name)[1]
            kernel = f"{architecture} norm_rotate_append {element_type(name)} {lanes} lanes"
            figures[kernel] = {**resources, **count(instructions, COUNTED)}
    return figures


def measure_samples() -> dict[str, dict[str, int]]:
    figures = {}
    for architecture in ARCHITECTURES:
        for name, resources, instructions in compile_kernels("sample.cu", architecture):
            rows = "aligned rows" if re.search(r"Lb1E", name) else "any rows"
            figures[f"{architecture} sample {element_type(name)} {rows}"] = {
                **resources,
                **count(instructions, COUNTED),
            }
    return figures


def measure_works() -> dict[str, dict[str, int]]:
    figures = {}
    for architecture in ARCHITECTURES:
        for name, resources, instructions in compile_kernels("works.cu", architecture):
            work, arguments = re.search(rf"({'|'.join(WORKS)})I(\S*?)E+v", name).groups()
            width = re.search(r"Li(\d+)", arguments)
            if work == "AppendWork":
                shape = f"{width[1]} bytes at a time"
            else:
                shape = element_type(arguments) + (
                    "" if width is None else " elements" if width[1] == "1" else " vectors"
                )
            figures[f"{architecture} {WORKS[work]} {shape}"] = {**resources, **count(instructions, COUNTED)}
    return figures


def atoms_differ(architecture: str) -> list[str]:
    """Instructions where our PTX and CUTLASS's part. CUTLASS also gives the L2 cache a hint, which is left aside."""
    spec = importlib.util.find_spec("cutlass_library")
    if spec is None:
        sys.exit("cutlass_library is missing: pip install --no-deps nvidia-cutlass")
    include = Path(spec.submodule_search_locations[0]) / "source" / "include"
    listings = []
    for source in ("atoms.cu", "atoms_cutlass.cu"):
        with tempfile.TemporaryDirectory() as directory:
            cubin = compile_cubin(HERE / source, architecture, Path(directory), f"-I{include}")
            listings.append([line.replace(".LTC128B", "") for line in disassemble(cubin)["atoms"]])
    ours, theirs = listings
    if len(ours) != len(theirs):
        return [f"{len(ours)} instructions, CUTLASS has {len(theirs)}"]
    return [f"{a}  CUTLASS: {b}" for a, b in zip(ours, theirs, strict=True) if a != b]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--update", action="store_true", help="write bars.json")
    options = parser.parse_args()
    compiler = re.search(r"V([\d.]+)", run(tool("nvcc"), "--version"))[1]
    failures = [f"{arch}: {line}" for arch in ARCHITECTURES for line in atoms_differ(arch)]
    figures = measure_attention() | measure_norms() | measure_layers() | measure_samples() | measure_works()
    for kernel, figure in figures.items():
        print(kernel, " ".join(f"{name}={value}" for name, value in figure.items()))
        if figure["stack_bytes"] or figure["local_memory"]:
            failures.append(f"{kernel}: registers are spilled")
        # On sm_80 some jumps out of loops are written as calls.
        if figure["CALL"] and "sm_90a" in kernel:
            failures.append(f"{kernel}: a subroutine is called")
        if "sample" in kernel and figure["registers"] > 64:
            failures.append(f"{kernel}: fewer than two blocks on a multiprocessor")
        if "aligned rows" in kernel and not figure["LDG_16_bytes"]:
            failures.append(f"{kernel}: no loads of 16 bytes")
        if "narrow" in kernel and (figure["registers"] > 128 or figure["blocks_per_multiprocessor"] < 3):
            failures.append(f"{kernel}: fewer than three blocks on a multiprocessor, or more than 128 registers")
        if figure.get("LDGSTS") != figure.get("LDGSTS_16_bytes"):
            failures.append(f"{kernel}: an asynchronous copy of less than 16 bytes")
        if "vectors" in kernel and any(figure[what] != figure[f"{what}_16_bytes"] for what in ("LDG", "STG")):
            failures.append(f"{kernel}: a load or store of less than 16 bytes")
    if options.update:
        BARS.write_text(json.dumps({"nvcc": compiler, "kernels": figures}, indent=1) + "\n")
    bars = json.loads(BARS.read_text())
    if bars["nvcc"] != compiler:
        print(f"bars.json is of nvcc {bars['nvcc']}, this is {compiler}: figures are not compared")
    elif bars["kernels"] != figures:
        changed = [kernel for kernel in figures if bars["kernels"].get(kernel) != figures[kernel]]
        failures.append(f"figures differ from bars.json: {', '.join(changed)}")
    print("\n".join(failures) or "all bars hold; the inline PTX gives CUTLASS's instructions")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
