#!/usr/bin/env bash
# FlashInfer for the GPU machine, called by prepare.sh, whose virtual environment it uses: wheels of FlashInfer and tvm-ffi
# into .gpu/cpython-312/wheels, and the kernels that bench.py asks for, compiled here without a GPU, into
# .gpu/cpython-312/flashinfer_aot/NAME/NAME.so. FLASHINFER_WORKSPACE (build/flashinfer) keeps objects between calls.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
carried=$root/.gpu/cpython-312
packages=(flashinfer-python==0.6.9 apache-tvm-ffi==0.1.15.post2)
venv=$root/build/flashinfer-venv
workspace=${FLASHINFER_WORKSPACE:-$root/build/flashinfer}
mkdir -p "$workspace"
[ -x "$venv/bin/python" ] || "$root/build/gpu-venv/bin/python" -m venv "$venv"
pip() { "$venv/bin/pip" "$@" -q --disable-pip-version-check; }
pip install torch numpy ninja setuptools nvidia-ml-py requests tabulate einops click tqdm packaging # torch without CUDA will do
pip install --no-deps "${packages[@]}" nvidia-curand

# Headers and libraries that the toolkit here may lack: cuRAND's from its wheel, the driver's as an empty stub.
cuda=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
curand=$(dirname "$(find "$venv" -name curand_kernel.h | head -1)")
stub=$workspace/stub
mkdir -p "$stub"
gcc -shared -Wl,-soname,libcuda.so.1 -o "$stub/libcuda.so" -x c /dev/null
export CPATH=$curand LIBRARY_PATH=$cuda/lib64:$cuda/lib:$stub PATH=$venv/bin:$PATH
export FLASHINFER_CUDA_ARCH_LIST=9.0a FLASHINFER_WORKSPACE_BASE=$workspace MAX_JOBS=${MAX_JOBS:-2}

# The names of a module's types, sizes and variants are its arguments: those of bench.py are bfloat16, head_dim 128.
(cd "$workspace" && python - << 'PYTHON') | while read -r library; do
import torch
from flashinfer.jit.attention.modules import gen_batch_prefill_module
from flashinfer.jit.cascade import gen_cascade_module

bf16 = torch.bfloat16
modules = [gen_cascade_module()]
for backend in ("fa2", "fa3"):
    modules.append(gen_batch_prefill_module(backend, bf16, bf16, bf16, torch.int32, 128, 128, 0, False, False, False))
for module in modules:
    module.build(verbose=False)
    print(module.jit_library_path, flush=True)
PYTHON
  name=$(basename "$library" .so)
  mkdir -p "$carried/flashinfer_aot/$name"
  strip --strip-unneeded -o "$carried/flashinfer_aot/$name/$name.so" "$library"
  echo "compiled $name"
done
rm -rf "$carried/wheels" "$carried/unpacked"
pip download --no-deps -d "$carried/wheels" "${packages[@]}"
