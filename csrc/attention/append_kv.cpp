#include "attention/append_kv.h"

#include <cstring>

#include "cpu/threads.h"

namespace batchllm {

void append_to_pages(const AppendParams& p, int32_t num_threads) {
    constexpr int64_t kTokensPerThread = 64;  // copying a decode step's few rows takes less than waking a thread
    num_threads = num_openmp_threads(num_threads, (p.num_tokens + kTokensPerThread - 1) / kTokensPerThread);
    // One copy per token if the heads are contiguous.
    const bool packed = p.token_head_stride == p.head_bytes && p.page_head_stride == p.head_bytes;
    const int64_t num_copies = packed ? 1 : p.num_kv_heads;
    const int64_t copy_bytes = packed ? p.num_kv_heads * p.head_bytes : p.head_bytes;
#pragma omp parallel for schedule(static) num_threads(num_threads)
    for (int64_t token = 0; token < p.num_tokens; ++token) {
        const int64_t slot = p.slots[token];
        const char* from = p.tokens + token * p.token_stride;
        char* to = p.pages + slot / p.page_size * p.page_stride + slot % p.page_size * p.slot_stride;
        for (int64_t i = 0; i < num_copies; ++i) {
            std::memcpy(to + i * p.page_head_stride, from + i * p.token_head_stride, copy_bytes);
        }
    }
}

}  // namespace batchllm
