// What runs on a GPU: attention, and the CUDA twins of append_to_pages and merge_states, over memory of one device.
// They put their work on a stream and return: the host waits for nothing and nothing is allocated, so a CUDA graph may
// capture them. A failed CUDA call is a std::runtime_error.
#pragma once

#include <cstdint>
#include <span>

#include "attention/append_kv.h"
#include "attention/cuda/attention_args.h"
#include "attention/merge.h"

namespace batchllm::cuda {

// Without it the functions below are declared, not defined: call them under `if constexpr`.
#ifdef BATCHLLM_HAS_CUDA
constexpr bool kIsBuilt = true;
#else
constexpr bool kIsBuilt = false;
#endif

struct Stream {
    int device;
    uintptr_t handle;  // a cudaStream_t; 0 is the device's default stream
};

// num_slots: of all pages. A row whose slot lies outside is not written.
void append_to_pages(const AppendParams& params, int64_t num_slots, Stream stream);

// At most kMaxMergeInputs inputs.
template <typename T>
void merge_states(std::span<const StatesView<const T>> inputs, const StatesView<T>& merged, int64_t num_tokens,
                  int64_t num_heads, int64_t head_dim, LseBase base, Stream stream);

// q, pages and out are all bfloat16 or all float16.
void attention(const AttentionCall& call, Stream stream);

}  // namespace batchllm::cuda
