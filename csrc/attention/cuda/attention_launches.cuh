// The launches of one attention call, the same on a GPU and on the emulator: wide tiles, narrow tiles, merge.
//
// Narrow tiles read nothing that wide ones write, so their launch overlaps with these as soon as all blocks of the wide
// ones have begun: the one multiplies while the other loads.
#pragma once

#include "attention/cuda/attention_kernels.cuh"
#include "attention/cuda/merge_rows_thread.h"
#include "cuda/run_work.cuh"

namespace batchllm::cuda {

template <typename T, int kHeadDim, typename Launcher>
void launch_attention(const AttentionCall& call, const Launcher& launch) {
    using Narrow = typename TileShapes<kHeadDim>::Narrow;
    const AttentionArgs& args = call.args;
    const auto num_heads = static_cast<uint32_t>(args.num_kv_heads);
    const auto num_wide = static_cast<uint32_t>(call.num_wide_tiles) * num_heads;
    if (num_wide > 0) {
        launch(attention_wide_kernel<T, kHeadDim>, LaunchGrid{num_wide, kWideThreads}, kWideSharedBytes<kHeadDim>,
               args);
    }
    if (call.num_narrow_tiles > 0) {
        const auto per_block = static_cast<uint32_t>(args.heads_per_block);
        const auto num_blocks =
            static_cast<uint32_t>(call.num_narrow_tiles) * ((num_heads + per_block - 1) / per_block);
        launch(attention_narrow_kernel<T, kHeadDim>, LaunchGrid{num_blocks, Narrow::kThreads}, Narrow::kSharedBytes,
               args, num_wide > 0 ? Begin::kEarly : Begin::kInOrder);
    }
    const MergeRowsWork<T> merge{
        .merge_rows = call.merge_rows,
        .num_merge_rows = call.num_merge_rows,
        .num_qo_heads = args.num_kv_heads * args.group_size,
        .head_dim = kHeadDim,
        .partial_out = static_cast<const T*>(args.partial_out),
        .partial_lse = args.partial_lse,
        .sinks = args.params.sinks,
        .out = args.params.out,
        .lse = args.params.lse,
    };
    launch_work(merge, launch, call.num_wide_tiles + call.num_narrow_tiles > 0 ? Begin::kEarly : Begin::kInOrder);
}

}  // namespace batchllm::cuda
