// What the attention of one layer would take on a GPU, in bfloat16: a model (gpu_time.h), not a measurement.
#pragma once

#include <cstdint>

#include "attention/plan/attention_plan.h"
#include "attention/plan/gpu_model.h"

namespace batchllm {

// Seconds of several ways to compute the same batch, by the same formulas.
struct AttentionSeconds {
    // The plan: one launch for its wide tiles, one for its narrow tiles, and one for their merge.
    double plan;
    // A plan for this GPU in which every request reads its keys separately.
    double per_request;
    // A launch for each level of the longest chain, planned for this GPU like ours, with a merge if it is split; states
    // are `out` in bfloat16 and `lse` in float32. Between levels a launch merges two states.
    double cascade;
    // The same with states in float32.
    double cascade_float32;
};

AttentionSeconds predict(const AttentionPlan& plan, const GpuModel& gpu);

// Arithmetic, and memory traffic, of one layer.
int64_t attention_flops(const AttentionPlan& plan);
int64_t partial_bytes(const AttentionPlan& plan);  // of all partial states, once
int64_t kv_bytes_per_token(const AttentionShape& shape, int64_t element_bytes);

}  // namespace batchllm
