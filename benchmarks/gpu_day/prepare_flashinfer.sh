#!/usr/bin/env bash
# FlashInfer for the GPU machine, called by prepare.sh: wheels of it and of tvm-ffi into .gpu/cpython-312/wheels, and the
# kernels that bench.py asks for, compiled here without a GPU, into .gpu/cpython-312/flashinfer_aot/NAME/NAME.so.
#
# Needs nvcc and an interpreter with torch, of any version (PYTHON; .venv's by itself). What is done when it is interrupted
# can be carried, and objects are kept for the next call in FLASHINFER_WORKSPACE (build/flashinfer).
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
carried=$root/.gpu/cpython-312
python=$(realpath -s "$(command -v "${PYTHON:-$root/.venv/bin/python}")")
workspace=$(realpath -m "${FLASHINFER_WORKSPACE:-$root/build/flashinfer}")
packages=(flashinfer-python==0.6.9 apache-tvm-ffi==0.1.15.post2)
needed=(nvidia-ml-py requests charset-normalizer urllib3 idna certifi tabulate einops click)
site=$workspace/site
rm -rf "$carried/wheels"
"$root/build/gpu-venv/bin/pip" download -q --disable-pip-version-check --no-deps -d "$carried/wheels" "${packages[@]}"
# Once: newer headers would have every object compiled anew.
[ -d "$site/flashinfer" ] || "$python" -m pip install -q --disable-pip-version-check --no-deps --target "$site" \
  "${packages[@]}" "${needed[@]}" nvidia-curand

# What this machine's toolkit may lack: cuRAND's headers are in its wheel, the driver's library is an empty stub.
cuda=$(realpath "$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')") # command -v nvcc may be a script
curand=$(dirname "$(find "$site" -name curand_kernel.h | head -1)")
stub=$workspace/stub
mkdir -p "$stub"
gcc -shared -Wl,-soname,libcuda.so.1 -o "$stub/libcuda.so" -x c /dev/null
export CUDA_HOME=$cuda CPATH=$curand LIBRARY_PATH=$cuda/lib64:$cuda/lib:$stub PATH=$(dirname "$python"):$PATH PYTHONPATH=$site
export FLASHINFER_CUDA_ARCH_LIST=9.0a FLASHINFER_WORKSPACE_BASE=$workspace MAX_JOBS=${MAX_JOBS:-2}

compile() { # prints the library of each module once it stands
  "$python" - << 'PYTHON'
import torch
from flashinfer.jit.attention.modules import gen_batch_prefill_module
from flashinfer.jit.cascade import gen_cascade_module

# bench.py's types and sizes; no positions, window, soft cap or sums in half precision.
variant = (torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.int32, 128, 128, 0, False, False, False)
for module in (gen_cascade_module(), *(gen_batch_prefill_module(backend, *variant) for backend in ("fa2", "fa3"))):
    module.build(verbose=False)
    print(module.jit_library_path, flush=True)
PYTHON
}
cd "$workspace"
compile | while read -r library; do
  name=$(basename "$library" .so)
  mkdir -p "$carried/flashinfer_aot/$name"
  strip --strip-unneeded -o "$carried/flashinfer_aot/$name/$name.so" "$library"
  echo "compiled $name"
done
