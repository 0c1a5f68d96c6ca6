// Attention on a GPU, and the CUDA twins of append_to_pages and merge_states, over memory of one device.
#pragma once

#include <span>

#include "attention/append_kv.h"
#include "attention/cuda/attention_args.h"
#include "attention/merge.h"
#include "cuda/stream.h"

namespace batchllm::cuda {

// num_slots: of all pages. A row whose slot lies outside is not written.
void append_to_pages(const AppendParams& params, int64_t num_slots, Stream stream);

// At most kMaxMergeInputs inputs.
template <typename T>
void merge_states(std::span<const StatesView<const T>> inputs, const StatesView<T>& merged, int64_t num_tokens,
                  int64_t num_heads, int64_t head_dim, LseBase base, Stream stream);

// q, pages and out are all bfloat16 or all float16.
void attention(const AttentionCall& call, Stream stream);

}  // namespace batchllm::cuda
