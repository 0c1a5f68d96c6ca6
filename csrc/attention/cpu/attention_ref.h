// The reference: attention from the batch arrays in float64, in plain loops, without a plan.
#pragma once

#include "attention/params.h"
#include "attention/plan/attention_batch.h"

namespace batchllm {

void attention_ref(const AttentionBatch& batch, const AttentionShape& shape, const AttentionParams& params);

}  // namespace batchllm
