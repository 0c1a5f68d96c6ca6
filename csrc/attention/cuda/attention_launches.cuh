// The launches of one attention call, the same on a GPU and on the emulator.
#pragma once

#include "attention/cuda/attention_kernel.cuh"
#include "attention/cuda/merge_rows_thread.h"
#include "cuda/run_work.cuh"

namespace batchllm::cuda {

template <typename T, int kHeadDim, typename Launcher>
void launch_attention(const AttentionCall& call, const Launcher& launch) {
    const AttentionArgs& args = call.args;
    if (call.num_tiles > 0) {
        const auto num_blocks = static_cast<uint32_t>(call.num_tiles) * static_cast<uint32_t>(args.num_kv_heads);
        launch(attention_kernel<T, kHeadDim>, LaunchGrid{num_blocks, kThreads}, kSharedBytes<kHeadDim>, args);
    }
    const MergeRowsWork<T> merge{
        .merge_rows = call.merge_rows,
        .num_merge_rows = call.num_merge_rows,
        .num_qo_heads = args.num_kv_heads * args.group_size,
        .head_dim = kHeadDim,
        .partial_out = args.partial_out,
        .partial_lse = args.partial_lse,
        .sinks = args.params.sinks,
        .out = args.params.out,
        .lse = args.params.lse,
    };
    launch_work(merge, launch);
}

}  // namespace batchllm::cuda
