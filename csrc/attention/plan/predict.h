// What the attention of one layer would take on a GPU, in bfloat16: a model at the device's peaks, not a measurement.
#pragma once

#include <cstdint>

#include "attention/plan/attention_plan.h"

namespace batchllm {

struct GpuPeaks {
    const char* name;
    double flops_per_s;  // dense bfloat16
    double bytes_per_s;  // of its memory
    double launch_s;     // between the end of one kernel and the beginning of the next, in a CUDA graph
};

constexpr double kLaunchSeconds = 2e-6;  // assumed

// NVIDIA's data sheets, without sparsity.
inline constexpr GpuPeaks kGpuPeaks[] = {
    {"A100 80GB SXM", 312e12, 2.039e12, kLaunchSeconds},
    {"H100 80GB SXM", 989e12, 3.35e12, kLaunchSeconds},
};

// Seconds of three ways through the same batch. Of each the larger of memory traffic and arithmetic, taken over all of
// its kernels at once, which favours the one of many kernels; and its launches.
struct AttentionSeconds {
    // Our kernel and its merge. Rows of q and partial states (float32) count as often as they are read or written.
    double plan;
    // One kernel that reads every key once for each request, or for each tile of a long prefill.
    double per_request;
    // A kernel for each level of the longest chain, which reads the keys that the plan reads and writes a state (out in
    // bfloat16, lse in float32) for every row, and between levels a kernel that makes one state of two.
    double cascade;
};

AttentionSeconds predict(const AttentionPlan& plan, const GpuPeaks& peaks);

// Arithmetic, and memory traffic, of one layer.
int64_t attention_flops(const AttentionPlan& plan);
int64_t partial_bytes(const AttentionPlan& plan);  // of all partial states, once
int64_t kv_bytes_per_token(const AttentionShape& shape, int64_t element_bytes);

}  // namespace batchllm
