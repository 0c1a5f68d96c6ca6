#!/usr/bin/env bash
# Builds batchllm_ext with CUDA for the interpreter PYTHON into .gpu/ of the repository, where python.sh finds it. Needs
# nvcc, and of that interpreter cmake, ninja and pybind11. BATCHLLM_CUDA_ARCHITECTURES: Hopper's unless it is set.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
tag=$("$PYTHON" -c 'import sys; print(sys.implementation.cache_tag)')
site=$root/.gpu/$tag/site
export PATH=$(dirname "$PYTHON"):$PATH
mkdir -p "$site"
cmake -S "$root" -B "$root/build/gpu-$tag" -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$PYTHON" \
  -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" -DBATCHLLM_EXT_DIR="$site" -DBATCHLLM_CUDA=ON \
  -DBATCHLLM_CUDA_ARCHITECTURES="${BATCHLLM_CUDA_ARCHITECTURES:-90a-real}"
cmake --build "$root/build/gpu-$tag" --target batchllm_ext
strip --strip-unneeded "$site"/batchllm_ext*.so
PYTHONPATH=$site "$PYTHON" -c 'import batchllm_ext as ext; assert ext.has_cuda(); print("built", ext.__file__)'
