// Attention of one layer over the tiles of a plan: prefix parts mostly in wide tiles, own parts mostly in narrow ones.
//   grid    wide: a block per tile and KV head, heads innermost; narrow: a block per tile and heads_per_block KV heads
//   reads   tiles, rows, pieces, page_ids; q, k_pages, v_pages, sinks
//   writes  out and lse, or partial_out and partial_lse where a row has several partial states
//   twin    cpu/attention_kernel.inc
//
// Blocks are independent, and a block with an empty tile does nothing. States are merged by a third kernel. The next
// launch may begin at once: narrow tiles need nothing of wide ones, and the merge waits.
#pragma once

#include "attention/cuda/tile_attention.cuh"

namespace batchllm::cuda {

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kWideThreads) attention_wide_kernel(const __grid_constant__ AttentionArgs args) {
    using Shapes = TileShapes<kHeadDim>;
    let_next_launch_begin();
    const int block = static_cast<int>(blockIdx.x);
    const AttentionTile tile = args.wide_tiles[block / args.num_kv_heads];
    const int kv_head = block % args.num_kv_heads;
    const int num_rows = tile.packed_end - tile.packed_begin;
    if (num_rows <= 0) return;
    if (num_rows <= Shapes::Medium::kRows) {
        TileAttention<T, typename Shapes::Medium>(args, tile, kv_head).run(kv_head + 1);
    } else {
        TileAttention<T, typename Shapes::Large>(args, tile, kv_head).run(kv_head + 1);
    }
}

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(TileShapes<kHeadDim>::Narrow::kThreads, 512 / TileShapes<kHeadDim>::Narrow::kThreads)
    attention_narrow_kernel(const __grid_constant__ AttentionArgs args) {
    let_next_launch_begin();
    const int block = static_cast<int>(blockIdx.x);
    const int blocks_per_tile = (args.num_kv_heads + args.heads_per_block - 1) / args.heads_per_block;
    const AttentionTile tile = args.narrow_tiles[block / blocks_per_tile];
    const int kv_head = block % blocks_per_tile * args.heads_per_block;
    if (tile.packed_end > tile.packed_begin) {
        TileAttention<T, typename TileShapes<kHeadDim>::Narrow>(args, tile, kv_head)
            .run(min(kv_head + args.heads_per_block, args.num_kv_heads));
    }
    if (blockIdx.x == gridDim.x - 1) wait_for_earlier_launches();  // the merge must not begin before the wide tiles end
}

}  // namespace batchllm::cuda
