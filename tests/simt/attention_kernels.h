// The kernels of one attention call on the emulator. attention_kernels.cpp is compiled twice: as it is, and with every
// load and store checked.
#pragma once

#include "attention/cuda/attention_args.h"
#include "simt/emulator/block.h"

namespace batchllm::simt_test {

enum class ElementType : int32_t { kBf16, kHalf };

struct AttentionCall {
    ElementType type;
    int32_t head_dim;
    int32_t num_tiles;
    int32_t num_merge_rows;
    const MergeRow* merge_rows;
    cuda::AttentionArgs args;
    simt::Schedule schedule;
};

// Findings tell what was wrong.
void run_attention(const AttentionCall& call);

}  // namespace batchllm::simt_test
