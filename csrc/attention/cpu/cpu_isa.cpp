#include "attention/cpu/cpu_isa.h"

#include <cstdlib>
#include <stdexcept>

namespace batchllm {
namespace {

std::vector<const Kernel*> find_kernels() {
    std::vector<const Kernel*> kernels{&kBaseKernel};
#ifdef BATCHLLM_X86_KERNELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) kernels.push_back(&kAvx2Kernel);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        kernels.push_back(&kAvx512Kernel);
        if (__builtin_cpu_supports("avx512bf16")) kernels.push_back(&kAvx512Bf16Kernel);
    }
#endif
    return kernels;
}

const Kernel& select_kernel() {
    const char* wanted = std::getenv("BATCHLLM_ISA");
    if (wanted == nullptr || *wanted == '\0') return *available_kernels().back();
    std::string names;
    for (const Kernel* kernel : available_kernels()) {
        if (std::string(wanted) == kernel->name) return *kernel;
        names += names.empty() ? kernel->name : std::string(", ") + kernel->name;
    }
    throw std::invalid_argument("BATCHLLM_ISA: expected one of " + names + " on this machine, got " + wanted);
}

}  // namespace

const std::vector<const Kernel*>& available_kernels() {
    static const std::vector<const Kernel*> kernels = find_kernels();
    return kernels;
}

const Kernel& selected_kernel() {
    static const Kernel& kernel = select_kernel();
    return kernel;
}

}  // namespace batchllm
