// Merges attention states of the same rows, in the order in which they come.
//   row     a token      item  one (head, d), d innermost; each computes the weights of its row and head anew
//   reads   inputs      writes  merged: out by every item, lse by the items with d = 0
//   twin    merge.cpp::merge_states, same order, same formulas
#pragma once

#include <cstdint>

#include "attention/merge.h"
#include "attention/state.h"
#include "base/bf16.h"
#include "base/host_device.h"

namespace batchllm::cuda {

constexpr int kMaxMergeInputs = 2;

template <typename T>
struct MergeWork {
    StatesView<const T> inputs[kMaxMergeInputs];
    int num_inputs;
    StatesView<T> merged;
    int64_t num_tokens;
    int64_t num_heads;
    int64_t head_dim;
    LseBase base;

    // A head without elements still has an lse.
    BATCHLLM_HOST_DEVICE int64_t items_per_head() const { return head_dim > 0 ? head_dim : 1; }
    BATCHLLM_HOST_DEVICE int64_t row_count() const { return num_tokens; }
    BATCHLLM_HOST_DEVICE int64_t items_per_row() const { return num_heads * items_per_head(); }

    BATCHLLM_HOST_DEVICE void operator()(int64_t token, uint32_t item) const {
        const auto per_head = static_cast<uint32_t>(items_per_head());
        const int64_t head = item / per_head, d = item % per_head;
        float merged_out = 0.0f;
        float merged_lse = -INFINITY;
        for (int i = 0; i < num_inputs; ++i) {
            const StatesView<const T>& input = inputs[i];
            const T* out = input.out + token * input.out_strides[0] + head * input.out_strides[2] + d;
            const float* lse = input.lse + token * input.lse_strides[0] + head * input.lse_strides[2];
            for (int64_t state = 0; state < input.num_states; ++state) {
                const float state_lse = natural_lse(lse[state * input.lse_strides[1]], base);
                const MergeWeights weights = merge_weights(merged_lse, state_lse);
                merged_lse = weights.lse;
                if (d < head_dim) {
                    merged_out = merge_out(weights, merged_out, to_float(out[state * input.out_strides[1]]));
                }
            }
        }
        if (d < head_dim) {
            merged.out[token * merged.out_strides[0] + head * merged.out_strides[2] + d] = from_float<T>(merged_out);
        }
        if (d == 0) {
            merged.lse[token * merged.lse_strides[0] + head * merged.lse_strides[2]] = lse_in_base(merged_lse, base);
        }
    }
};

}  // namespace batchllm::cuda
