#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace batchllm {
namespace {

std::vector<CpuIsa> find_isas() {
    std::vector<CpuIsa> isas{CpuIsa::kBase};
#ifdef BATCHLLM_X86_KERNELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) isas.push_back(CpuIsa::kAvx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        isas.push_back(CpuIsa::kAvx512);
        if (__builtin_cpu_supports("avx512bf16")) isas.push_back(CpuIsa::kAvx512Bf16);
    }
#endif
    return isas;
}

CpuIsa select_isa() {
    const char* wanted = std::getenv("BATCHLLM_ISA");
    if (wanted == nullptr || *wanted == '\0') return available_isas().back();
    std::string names;
    for (const CpuIsa isa : available_isas()) {
        if (std::string(wanted) == name(isa)) return isa;
        names += names.empty() ? name(isa) : std::string(", ") + name(isa);
    }
    throw std::invalid_argument("BATCHLLM_ISA: expected one of " + names + " on this machine, got " + wanted);
}

}  // namespace

const char* name(CpuIsa isa) {
    switch (isa) {
        case CpuIsa::kAvx2:
            return "avx2";
        case CpuIsa::kAvx512:
            return "avx512";
        case CpuIsa::kAvx512Bf16:
            return "avx512_bf16";
        default:
            return "base";
    }
}

const std::vector<CpuIsa>& available_isas() {
    static const std::vector<CpuIsa> isas = find_isas();
    return isas;
}

CpuIsa selected_isa() {
    static const CpuIsa isa = select_isa();
    return isa;
}

}  // namespace batchllm
