// Copies the keys (or values) of new tokens into their slots.
//   item    one unit of one head of one token; units are innermost, so neighbouring threads touch neighbouring memory
//   reads   tokens, slots      writes  pages
//   twin    append_kv.cpp::append_to_pages
#pragma once

#include <cstdint>
#include <cstring>

#include "attention/append_kv.h"
#include "base/host_device.h"
#include "cuda/vector.h"

namespace batchllm::cuda {

// Whether every head begins at a multiple of kVectorBytes and is a multiple long.
inline bool is_vector_aligned(const AppendParams& p) {
    const auto bits = reinterpret_cast<uintptr_t>(p.tokens) | reinterpret_cast<uintptr_t>(p.pages);
    const int64_t sizes =
        p.token_stride | p.token_head_stride | p.page_stride | p.slot_stride | p.page_head_stride | p.head_bytes;
    return (bits | static_cast<uintptr_t>(sizes)) % kVectorBytes == 0;
}

// kUnitBytes: kVectorBytes where is_vector_aligned, else 1.
template <int kUnitBytes>
struct AppendWork {
    AppendParams p;
    // Slots of all pages. A row whose slot lies outside is not written: to refuse it, the host would have to wait.
    int64_t num_slots;

    BATCHLLM_HOST_DEVICE int64_t num_items() const {
        return p.num_tokens * p.num_kv_heads * (p.head_bytes / kUnitBytes);
    }

    BATCHLLM_HOST_DEVICE void operator()(int64_t item) const {
        const int64_t num_units = p.head_bytes / kUnitBytes;
        const int64_t offset = item % num_units * kUnitBytes;
        const int64_t head = item / num_units % p.num_kv_heads;
        const int64_t token = item / num_units / p.num_kv_heads;
        const int64_t slot = p.slots[token];
        if (slot < 0 || slot >= num_slots) return;
        const char* from = p.tokens + token * p.token_stride + head * p.token_head_stride + offset;
        char* to = p.pages + slot / p.page_size * p.page_stride + slot % p.page_size * p.slot_stride +
                   head * p.page_head_stride + offset;
        memcpy(__builtin_assume_aligned(to, kUnitBytes), __builtin_assume_aligned(from, kUnitBytes), kUnitBytes);
    }
};

}  // namespace batchllm::cuda
