// The launches of one attention call for one element type and head_dim. Each instance is defined in a file of its own
// (attention_instance.cu.in).
#pragma once

#include "attention/cuda/attention_args.h"
#include "cuda/stream.h"

namespace batchllm::cuda {

template <typename T, int kHeadDim>
void attention_instance(const AttentionCall& call, Stream stream);

}  // namespace batchllm::cuda
