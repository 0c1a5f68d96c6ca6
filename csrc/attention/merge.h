// Merges attention states of the same rows over disjoint sets of keys, in the given order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "attention/state.h"
#include "base/bf16.h"

namespace batchllm {

// The running merge of one row and head. It starts as the empty state.
class StateMerger {
 public:
    // `out` is memory for head_dim floats.
    StateMerger(float* out, int64_t head_dim) : out_(out), head_dim_(head_dim) { std::fill_n(out, head_dim, 0.0f); }

    template <typename T>
    void add(const T* out, float lse) {
        const MergeWeights weights = merge_weights(lse_, lse);
        lse_ = weights.lse;
        if (weights.b == 0.0f) return scale(weights.a);
        float* __restrict sum = out_;
        if (weights.a == 0.0f) {
            for (int64_t d = 0; d < head_dim_; ++d) sum[d] = weights.b * to_float(out[d]);
        } else {
            for (int64_t d = 0; d < head_dim_; ++d) sum[d] = weights.a * sum[d] + weights.b * to_float(out[d]);
        }
    }

    template <typename T>
    void write(T* out) const {
        for (int64_t d = 0; d < head_dim_; ++d) out[d] = from_float<T>(out_[d]);
    }

    float lse() const { return lse_; }

 private:
    void scale(float weight) {
        if (weight == 1.0f) return;
        for (int64_t d = 0; d < head_dim_; ++d) out_[d] *= weight;
    }

    float* out_;
    int64_t head_dim_;
    float lse_ = -INFINITY;
};

// States from other sources. Strides count elements; head_dim is contiguous.
template <typename T>
struct StatesView {
    T* out;  // [num_tokens, num_states, num_heads, head_dim]
    int64_t out_strides[3];
    std::conditional_t<std::is_const_v<T>, const float, float>* lse;  // [num_tokens, num_states, num_heads]
    int64_t lse_strides[3];
    int64_t num_states;
};

// Merges the states of all inputs into `merged`, which has one state.
template <typename T>
void merge_states(std::span<const StatesView<const T>> inputs, const StatesView<T>& merged, int64_t num_tokens,
                  int64_t num_heads, int64_t head_dim, LseBase base);

}  // namespace batchllm
