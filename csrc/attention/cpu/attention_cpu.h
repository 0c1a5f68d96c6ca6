// Attention on the CPU: the plan's items on OpenMP threads, then the merge of partial states.
#pragma once

#include "attention/params.h"
#include "attention/plan/attention_plan.h"

namespace batchllm {

void run_attention_cpu(const AttentionPlan& plan, const AttentionParams& params, int32_t num_threads);

}  // namespace batchllm
