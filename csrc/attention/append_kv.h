// Writes the keys (or values) of new tokens into their slots.
#pragma once

#include <cstdint>

namespace batchllm {

// Strides count bytes; head_dim is contiguous on both sides.
struct AppendParams {
    const char* tokens;  // [num_tokens, num_kv_heads, head_dim]
    int64_t token_stride;
    int64_t token_head_stride;
    char* pages;  // [num_pages, page_size, num_kv_heads, head_dim], of the same element type
    int64_t page_stride;
    int64_t slot_stride;
    int64_t page_head_stride;
    const int64_t* slots;  // [num_tokens]: page_id * page_size + offset, all different and inside the pages
    int64_t num_tokens;
    int64_t num_kv_heads;
    int64_t page_size;
    int64_t head_bytes;
};

void append_to_pages(const AppendParams& params, int32_t num_threads);

}  // namespace batchllm
