// Attention of one layer over the tiles of a plan: prefix parts and own parts in one launch.
//   grid    num_tiles x num_kv_heads blocks of kThreads threads, heads innermost; kSharedBytes of shared memory
//   reads   tiles, rows, pieces, page_ids; q, k_pages, v_pages, sinks
//   writes  out and lse, or partial_out and partial_lse where a row has several partial states
//   twin    cpu/attention_kernel.inc
//
// Blocks are independent, and a block with an empty tile does nothing. States are merged by a second kernel.
#pragma once

#include "attention/cuda/tile_attention.cuh"

namespace batchllm::cuda {

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads) attention_kernel(const __grid_constant__ AttentionArgs args) {
    using Shapes = TileShapes<kHeadDim>;
    const int block = static_cast<int>(blockIdx.x);
    const AttentionTile tile = args.tiles[block / args.num_kv_heads];
    const int kv_head = block % args.num_kv_heads;
    const int num_rows = tile.packed_end - tile.packed_begin;
    if (num_rows <= 0) return;
    if (num_rows <= Shapes::Small::kRows) {
        TileAttention<T, typename Shapes::Small>(args, tile, kv_head).run();
    } else if (num_rows <= Shapes::Medium::kRows) {
        TileAttention<T, typename Shapes::Medium>(args, tile, kv_head).run();
    } else {
        TileAttention<T, typename Shapes::Large>(args, tile, kv_head).run();
    }
}

}  // namespace batchllm::cuda
