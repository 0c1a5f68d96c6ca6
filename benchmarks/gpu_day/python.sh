#!/usr/bin/env bash
# Runs the interpreter with this repository on its path, and what prepare.sh carried for it in .gpu/:
#
#   PYTHON=python3.12 bash benchmarks/gpu_day/python.sh -m pytest -m gpu
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
default=$root/.venv/bin/python
[ -x "$default" ] || default=python3
python=$(command -v "${PYTHON:-$default}") || { echo "PYTHON: there is no ${PYTHON:-$default}" >&2; exit 2; }
python=$(realpath -s "$python") # absolute, and still that of a virtual environment
tag=$("$python" -c 'import sys; print(sys.implementation.cache_tag)') # cpython-312
carried=$root/.gpu/$tag

# Packages that are carried as wheels, which are smaller, and FlashInfer's compiled kernels where it looks for them.
unpacked=$root/build/gpu-$tag-wheels
if [ "$carried/wheels" -nt "$unpacked" ]; then
  rm -rf "$unpacked" "$unpacked.part"
  mkdir -p "$unpacked.part"
  for wheel in "$carried"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$unpacked.part"; done
  if [ -d "$carried/flashinfer_aot" ]; then
    mkdir -p "$unpacked.part/flashinfer/data/aot"
    cp -r "$carried/flashinfer_aot/." "$unpacked.part/flashinfer/data/aot/"
  fi
  mv "$unpacked.part" "$unpacked"
fi
export PYTHON=$python PYTHONPATH=$carried/site:$root:$unpacked${PYTHONPATH:+:$PYTHONPATH}
exec "$python" "$@"
