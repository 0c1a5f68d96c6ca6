// Attention of one layer: picks the back end once and runs a plan.
#pragma once

#include <cstdint>

#include "attention/attention_params.h"
#include "attention/attention_plan.h"

namespace batchllm {

// Pages, slots and shapes must match the plan; the caller has checked that.
void run_attention(const AttentionPlan& plan, const AttentionParams& params, int32_t num_threads);

}  // namespace batchllm
