// The arguments of one attention call: plain structs, no functions, like work_item.h.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace batchllm {

// Strides count elements; head_dim is contiguous.
struct QueryTensor {  // [num_tokens, num_qo_heads, head_dim]
    const void* data;
    DType dtype;
    int64_t token_stride;
    int64_t head_stride;
};

struct PagedTensor {  // [num_pages, page_size, num_kv_heads, head_dim]
    const void* data;
    int64_t page_stride;
    int64_t slot_stride;
    int64_t head_stride;
};

struct OutputTensor {  // [num_tokens, num_qo_heads, head_dim]
    void* data;
    DType dtype;
    int64_t token_stride;
    int64_t head_stride;
};

struct LseTensor {  // [num_tokens, num_qo_heads], natural log
    float* data;    // null: not wanted
    int64_t token_stride;
    int64_t head_stride;
};

struct AttentionParams {
    QueryTensor q;
    PagedTensor k_pages;
    PagedTensor v_pages;
    DType kv_dtype;
    OutputTensor out;
    LseTensor lse;
    float softmax_scale;           // multiplies q.k; usually 1 / sqrt(head_dim)
    float soft_cap = 0.0f;         // score = cap * tanh(score / cap), before the mask; 0: off
    const float* sinks = nullptr;  // [num_qo_heads] scores of a key with v = 0 that every row sees; null: none
};

}  // namespace batchllm
