// Turns the pairs (i, i + size / 2) of every head by the row's angles, in place.
//   item    kVector neighbouring pairs of one head; pairs are innermost
//   reads   x, cos, sin      writes  x
//   twin    row_kernels.inc::rotate, same formulas; either may fuse a product and a sum
#pragma once

#include "rows/cuda/row_vectors.h"

namespace batchllm::cuda {

// Pairs of elements, one of each half of a head.
template <typename T, int kVector>
BATCHLLM_HOST_DEVICE inline void rotate_vectors(Vector<T, kVector>& first, Vector<T, kVector>& second,
                                                const Vector<float, kVector>& cos, const Vector<float, kVector>& sin) {
    for (int j = 0; j < kVector; ++j) {
        const float a = to_float(first.elements[j]), b = to_float(second.elements[j]);
        first.elements[j] = from_float<T>(a * cos.elements[j] - b * sin.elements[j]);
        second.elements[j] = from_float<T>(b * cos.elements[j] + a * sin.elements[j]);
    }
}

// kVector: kVectorSize<T> where has_vectors, else 1.
template <typename T, int kVector>
struct RotateWork {
    RotateParams p;
    int64_t num_rows;

    BATCHLLM_HOST_DEVICE int64_t vectors_per_head() const { return p.size / 2 / kVector; }
    BATCHLLM_HOST_DEVICE int64_t row_count() const { return num_rows; }
    BATCHLLM_HOST_DEVICE int64_t items_per_row() const { return p.num_heads * vectors_per_head(); }

    BATCHLLM_HOST_DEVICE void operator()(int64_t row, uint32_t item) const {
        const auto vectors = static_cast<uint32_t>(vectors_per_head());
        const int64_t head = item / vectors, i = int64_t{item % vectors} * kVector;
        const auto cos = load_vector<kVector>(p.cos + row * p.cos_stride + i);
        const auto sin = load_vector<kVector>(p.sin + row * p.sin_stride + i);
        T* const x = head_row<T>(p.x, row, head) + i;
        auto first = load_vector<kVector>(x);
        auto second = load_vector<kVector>(x + p.size / 2);
        rotate_vectors(first, second, cos, sin);
        store_vector(x, first);
        store_vector(x + p.size / 2, second);
    }

    static bool has_vectors(const RotateParams& p, int64_t num_rows) {
        const uintptr_t angles = offset_bits(p.cos) | offset_bits(p.sin) | offset_bits<float>(num_rows, p.cos_stride) |
                                 offset_bits<float>(num_rows, p.sin_stride);
        const uintptr_t half = static_cast<uintptr_t>(p.size / 2) * sizeof(T);
        return (offset_bits<T>(p.x, num_rows, p.num_heads) | angles | half) % kVectorBytes == 0;
    }
};

}  // namespace batchllm::cuda
