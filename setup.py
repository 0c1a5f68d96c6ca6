"""Builds the C++ extension `batchllm_ext` with CMake; everything else stands in pyproject.toml.

Environment: BATCHLLM_CUDA=AUTO|ON|OFF (default AUTO: CUDA kernels where nvcc is found), BATCHLLM_CUDA_ARCHITECTURES (as
CMake's list; default that of CMakeLists.txt), BATCHLLM_BUILD_DIR (default build/ext, kept between builds), CMAKE_ARGS.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build_dir = Path(os.environ.get("BATCHLLM_BUILD_DIR", ROOT / "build" / "ext"))
        architectures = os.environ.get("BATCHLLM_CUDA_ARCHITECTURES")
        configure = [
            *("cmake", "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"),
            # Said anew each time: the build environment of an earlier configuration may be gone.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DBATCHLLM_EXT_DIR={target.parent}",
            f"-DBATCHLLM_CUDA={os.environ.get('BATCHLLM_CUDA', 'AUTO')}",
            f"-DBATCHLLM_CUDA_ARCHITECTURES={architectures}" if architectures else "-UBATCHLLM_CUDA_ARCHITECTURES",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DCMAKE_INSTALL_LIBDIR=lib",  # on every system, so that batchllm.get_cmake_dir() knows it
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        run(configure)
        if target.parent != ROOT:
            stubs = target.parent / f"{ext.name}-stubs"  # where type checkers look for those of an extension
            stubs.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / f"{ext.name}.pyi", stubs / "__init__.pyi")
        run(["cmake", "--build", str(build_dir), "--target", ext.name])
        if target.parent != ROOT:
            prefix = target.parent / "batchllm" / "cpp"  # the planner, for C++
            run(["cmake", "--install", str(build_dir), "--component", "planner", "--prefix", str(prefix)])


def run(command: list[str]) -> None:
    if subprocess.run(command).returncode:
        sys.exit("batchllm-ext: the native module was not built; what is wrong stands above this line")


setup(ext_modules=[Extension("batchllm_ext", sources=[])], cmdclass={"build_ext": CMakeBuild})
