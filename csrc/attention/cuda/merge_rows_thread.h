// Merges the partial states of each row of a plan, in the order of their slots, and gives the row its sink.
//   row     one of merge_rows      item  kVector neighbouring elements of one head; each computes its weights anew
//   reads   merge_rows, partial_out, partial_lse, sinks
//   writes  out by every item, lse (if it is wanted) by the first of a head
//   twin    cpu/attention_kernel.inc::merge, same order; it scales to the largest state, this to what was merged so far
#pragma once

#include <cstdint>

#include "attention/params.h"
#include "attention/plan/work_item.h"
#include "attention/state.h"
#include "base/bf16.h"
#include "base/half.h"
#include "base/host_device.h"
#include "cuda/vector.h"

namespace batchllm::cuda {

template <typename T>
struct MergeRowsWork {
    static constexpr int kVector = 4;

    const MergeRow* merge_rows;  // token -1: nothing to do
    int32_t num_merge_rows;
    int32_t num_qo_heads;
    int32_t head_dim;          // a multiple of kVector
    const T* partial_out;      // [num_slots, num_qo_heads, head_dim]
    const float* partial_lse;  // [num_slots, num_qo_heads]
    const float* sinks;        // [num_qo_heads], or null
    OutputTensor out;          // of T
    LseTensor lse;

    BATCHLLM_HOST_DEVICE int64_t row_count() const { return num_merge_rows; }
    BATCHLLM_HOST_DEVICE int64_t items_per_row() const { return int64_t{num_qo_heads} * (head_dim / kVector); }

    BATCHLLM_HOST_DEVICE void operator()(int64_t index, uint32_t item) const {
        const uint32_t vectors = head_dim / kVector;
        const int head = static_cast<int>(item / vectors);
        const int d = static_cast<int>(item % vectors) * kVector;
        const MergeRow row = merge_rows[index];
        if (row.token < 0) return;
        Vector<float, kVector> merged{};
        float merged_lse = -INFINITY;
        for (int64_t slot = row.slot_begin; slot < row.slot_end; ++slot) {
            const int64_t state = slot * num_qo_heads + head;
            const MergeWeights weights = merge_weights(merged_lse, partial_lse[state]);
            const auto part = load_vector<kVector>(partial_out + state * head_dim + d);
            merged_lse = weights.lse;
            for (int i = 0; i < kVector; ++i) {
                merged.elements[i] = merge_out(weights, merged.elements[i], to_float(part.elements[i]));
            }
        }
        if (sinks != nullptr) {  // a key with v = 0
            const MergeWeights weights = merge_weights(merged_lse, sinks[head]);
            merged_lse = weights.lse;
            for (int i = 0; i < kVector; ++i) merged.elements[i] = merge_out(weights, merged.elements[i], 0.0f);
        }
        Vector<T, kVector> result;
        for (int i = 0; i < kVector; ++i) result.elements[i] = from_float<T>(merged.elements[i]);
        T* to = static_cast<T*>(out.data) + row.token * out.token_stride + head * out.head_stride + d;
        store_vector(to, result);
        if (d == 0 && lse.data != nullptr) lse.data[row.token * lse.token_stride + head * lse.head_stride] = merged_lse;
    }
};

}  // namespace batchllm::cuda
