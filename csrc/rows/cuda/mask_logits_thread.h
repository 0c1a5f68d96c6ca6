// logits = -inf where the token's bit is 0, in place.
//   item    kVector neighbouring logits of a row, whose bits lie in one word
//   reads   allowed, logits      writes  logits
//   twin    row_kernels.inc::mask_logits
#pragma once

#include <limits>

#include "rows/cuda/row_vectors.h"

namespace batchllm::cuda {

// kVector: kVectorSize<T> where has_vectors, else 1.
template <typename T, int kVector>
struct MaskLogitsWork {
    static constexpr int kWordBits = 32;
    static_assert(kWordBits % kVector == 0);

    MaskLogitsParams p;
    int64_t num_rows;

    BATCHLLM_HOST_DEVICE int64_t row_count() const { return num_rows; }
    BATCHLLM_HOST_DEVICE int64_t items_per_row() const { return p.vocab_size / kVector; }

    BATCHLLM_HOST_DEVICE void operator()(int64_t row, uint32_t item) const {
        constexpr uint32_t kAll = kVector == kWordBits ? ~0u : (1u << kVector) - 1;
        const int64_t i = int64_t{item} * kVector;
        const uint32_t word = static_cast<uint32_t>(p.allowed[row * p.allowed_stride + i / kWordBits]);
        const uint32_t bits = word >> (i % kWordBits) & kAll;
        if (bits == kAll) return;
        T* const at = static_cast<T*>(p.logits) + row * p.row_stride + i;
        auto logits = load_vector<kVector>(static_cast<const T*>(at));
        for (int j = 0; j < kVector; ++j) {
            if ((bits >> j & 1) == 0) logits.elements[j] = from_float<T>(-std::numeric_limits<float>::infinity());
        }
        store_vector(at, logits);
    }

    static bool has_vectors(const MaskLogitsParams& p, int64_t num_rows) {
        const uintptr_t size = static_cast<uintptr_t>(p.vocab_size) * sizeof(T);
        return (offset_bits(p.logits) | offset_bits<T>(num_rows, p.row_stride) | size) % kVectorBytes == 0;
    }
};

}  // namespace batchllm::cuda
