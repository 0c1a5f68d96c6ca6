// Copies the keys (or values) of new tokens into their slots.
//   row     a token      item  one unit of one head; units are innermost, so neighbouring threads touch neighbours
//   reads   tokens, slots      writes  pages
//   twin    append_kv.cpp::append_to_pages
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

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

// The slots of a pool, in the 32 bits that kernels divide. Throws std::invalid_argument for more.
inline uint32_t checked_num_slots(int64_t num_slots) {
    if (num_slots <= UINT32_MAX) return static_cast<uint32_t>(num_slots);
    throw std::invalid_argument("num_pages * page_size: expected at most " + std::to_string(UINT32_MAX) +
                                " on a GPU, got " + std::to_string(num_slots));
}

// kUnitBytes: kVectorBytes where is_vector_aligned, else 1.
template <int kUnitBytes>
struct AppendWork {
    AppendParams p;
    // Slots of all pages. A row whose slot lies outside is not written: to refuse it, the host would have to wait.
    uint32_t num_slots;

    BATCHLLM_HOST_DEVICE int64_t units_per_head() const { return p.head_bytes / kUnitBytes; }
    BATCHLLM_HOST_DEVICE int64_t row_count() const { return p.num_tokens; }
    BATCHLLM_HOST_DEVICE int64_t items_per_row() const { return p.num_kv_heads * units_per_head(); }

    BATCHLLM_HOST_DEVICE void operator()(int64_t token, uint32_t item) const {
        if (p.slots[token] < 0 || p.slots[token] >= num_slots) return;
        const auto slot = static_cast<uint32_t>(p.slots[token]), page_size = static_cast<uint32_t>(p.page_size);
        const auto num_units = static_cast<uint32_t>(units_per_head());
        const int64_t head = item / num_units, offset = int64_t{item % num_units} * kUnitBytes;
        const char* from = p.tokens + token * p.token_stride + head * p.token_head_stride + offset;
        char* to = p.pages + slot / page_size * p.page_stride + slot % page_size * p.slot_stride +
                   head * p.page_head_stride + offset;
        memcpy(__builtin_assume_aligned(to, kUnitBytes), __builtin_assume_aligned(from, kUnitBytes), kUnitBytes);
    }
};

}  // namespace batchllm::cuda
