// The instruction sets that kernels are compiled for, and which of them this machine has.
#pragma once

#include <cstdint>
#include <vector>

namespace batchllm {

enum class CpuIsa : uint8_t {
    kBase,        // any machine
    kAvx2,        // AVX2, FMA
    kAvx512,      // AVX-512 F, BW, DQ, VL
    kAvx512Bf16,  // and BF16: dot products of bfloat16
};

// "base", "avx2", "avx512", "avx512_bf16"
const char* name(CpuIsa isa);

// The sets of this machine, slowest first; never empty.
const std::vector<CpuIsa>& available_isas();

// The fastest one, or the one that the environment variable BATCHLLM_ISA names. Chosen at the first call; throws
// std::invalid_argument if the machine has no such set.
CpuIsa selected_isa();

}  // namespace batchllm
