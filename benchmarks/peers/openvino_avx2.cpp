// What OpenVINO's kernels beside oneDNN's ask of the CPU, answered as by one that has AVX2 and nothing newer. Loaded
// before OpenVINO: g++ -shared -fPIC -o libavx2.so openvino_avx2.cpp

namespace ov {

bool with_cpu_x86_avx2_vnni() {
    return false;
}
bool with_cpu_x86_avx2_vnni_2() {
    return false;
}
bool with_cpu_x86_avx512f() {
    return false;
}
bool with_cpu_x86_avx512_core() {
    return false;
}
bool with_cpu_x86_avx512_core_vnni() {
    return false;
}
bool with_cpu_x86_bfloat16() {
    return false;
}
bool with_cpu_x86_avx512_core_fp16() {
    return false;
}
bool with_cpu_x86_avx512_core_amx() {
    return false;
}
bool with_cpu_x86_avx512_core_amx_int8() {
    return false;
}
bool with_cpu_x86_avx512_core_amx_bf16() {
    return false;
}
bool with_cpu_x86_avx512_core_amx_fp16() {
    return false;
}

}  // namespace ov
