"""The planner as a library for C++, which an installed package holds: where compilers and CMake find it."""

from __future__ import annotations

from pathlib import Path

import batchllm_ext


def get_include() -> str:
    """The directory of <batchllm/planner/...>. FileNotFoundError where only the native module was built."""
    return str(_prefix() / "include")


def get_cmake_dir() -> str:
    """What `batchllm_DIR` is for find_package(batchllm), which gives the target batchllm::planner. FileNotFoundError
    likewise."""
    return str(_prefix() / "lib" / "cmake" / "batchllm")


def _prefix() -> Path:
    prefix = Path(batchllm_ext.__file__).parent / "batchllm" / "cpp"  # they are installed side by side
    if not prefix.is_dir():
        raise FileNotFoundError(
            f"no C++ package at {prefix}: batchllm_ext was built in place, not installed by pip; "
            "cmake --install BUILD --component planner --prefix PREFIX makes one"
        )
    return prefix
