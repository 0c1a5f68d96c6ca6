"""Where compilers and CMake find the C++ planner library of an installed package."""

from __future__ import annotations

from pathlib import Path

import batchllm_ext


def get_include() -> str:
    """The directory of <batchllm/planner/...>. Raises FileNotFoundError if only the native module was built."""
    return str(_prefix() / "include")


def get_cmake_dir() -> str:
    """The value of `batchllm_DIR` for find_package(batchllm), which defines the target batchllm::planner. Raises
    FileNotFoundError if only the native module was built."""
    return str(_prefix() / "lib" / "cmake" / "batchllm")


def _prefix() -> Path:
    prefix = Path(batchllm_ext.__file__).parent / "batchllm" / "cpp"  # installed side by side
    if not prefix.is_dir():
        raise FileNotFoundError(
            f"no C++ package at {prefix}: batchllm_ext was built in place, not installed by pip; "
            "cmake --install BUILD --component planner --prefix PREFIX makes one"
        )
    return prefix
