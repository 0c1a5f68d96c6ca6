// out = gate / (1 + exp(-gate)) * up.
//   item    kVector neighbouring elements of a row of out
//   reads   gate_up      writes  out
//   twin    row_kernels.inc::silu_and_mul, same formulas, but another exp2
#pragma once

#include <cmath>

#include "rows/cuda/row_vectors.h"

namespace batchllm::cuda {

BATCHLLM_HOST_DEVICE inline float silu(float x) {
    constexpr float kLog2E = 1.44269504088896341f;
    const float exponent = x * -kLog2E;
    // From there on the quotient is as good as zero, and of -inf it would be NaN.
    return exponent > 127.0f ? 0.0f : quotient(x, 1.0f + exp2f(exponent));
}

// kVector: kVectorSize<T> where has_vectors, else 1.
template <typename T, int kVector>
struct SiluAndMulWork {
    SiluAndMulParams p;
    int64_t num_rows;

    BATCHLLM_HOST_DEVICE int64_t row_count() const { return num_rows; }
    BATCHLLM_HOST_DEVICE int64_t items_per_row() const { return p.size / kVector; }

    BATCHLLM_HOST_DEVICE void operator()(int64_t row, uint32_t item) const {
        const int64_t i = int64_t{item} * kVector;
        const T* const from = static_cast<const T*>(p.gate_up) + row * p.gate_up_stride + i;
        const auto gate = load_vector<kVector>(from);
        const auto up = load_vector<kVector>(from + p.size);
        Vector<T, kVector> out;
        for (int j = 0; j < kVector; ++j) {
            out.elements[j] = from_float<T>(silu(to_float(gate.elements[j])) * to_float(up.elements[j]));
        }
        store_vector(static_cast<T*>(p.out) + row * p.out_stride + i, out);
    }

    static bool has_vectors(const SiluAndMulParams& p, int64_t num_rows) {
        const uintptr_t strides = offset_bits<T>(num_rows, p.gate_up_stride) | offset_bits<T>(num_rows, p.out_stride);
        const uintptr_t size = static_cast<uintptr_t>(p.size) * sizeof(T);
        return (offset_bits(p.gate_up) | offset_bits(p.out) | strides | size) % kVectorBytes == 0;
    }
};

}  // namespace batchllm::cuda
