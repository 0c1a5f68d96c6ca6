// The kernels of one attention call on the emulator. attention_kernels.cpp is compiled twice: as it is, and with every
// load and store checked.
#pragma once

#include "attention/cuda/attention_args.h"
#include "simt/emulator/block.h"

namespace batchllm::simt_test {

// Findings tell what was wrong.
void run_attention(const cuda::AttentionCall& call, const simt::Schedule& schedule);

}  // namespace batchllm::simt_test
