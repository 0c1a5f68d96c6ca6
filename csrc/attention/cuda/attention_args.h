// What the attention kernels work on: plain structs.
#pragma once

#include <cstdint>

#include "attention/params.h"
#include "attention/plan/work_item.h"

namespace batchllm::cuda {

constexpr float kLog2E = 1.44269504088896341f;

// What one block does for one KV head: rows of one work item, against those of its keys that they see.
//
// Query heads are packed as rows, token by token: packed row i of an item is query head i % group_size of the KV head,
// of the item's token i / group_size.
struct AttentionTile {
    int32_t row_begin;     // into rows: the item's first
    int32_t packed_begin;  // packed rows of the item; an empty range is nothing to do
    int32_t packed_end;
    int32_t piece_begin;  // into pieces; from there on they cover [kv_begin, kv_end)
    int32_t kv_begin;
    int32_t kv_end;

    bool operator==(const AttentionTile&) const = default;
};

struct AttentionArgs {
    const AttentionTile* wide_tiles;    // [num_wide_tiles]
    const AttentionTile* narrow_tiles;  // [num_narrow_tiles], of at most kNarrowRows packed rows
    const WorkRow* rows;
    const KvPiece* pieces;
    const int32_t* page_ids;
    int32_t num_kv_heads;
    int32_t group_size;  // query heads of one KV head
    int32_t page_size;
    int32_t heads_per_block;  // KV heads that a block takes of a narrow tile
    float score_factor;       // makes of q.k a score in base 2, or with a soft cap the 2 x in base 2 of its tanh x
    float soft_cap;           // in base 2; 0: off
    // Every base and stride of q, k_pages, v_pages and out is a multiple of 16 bytes, and all have one type.
    AttentionParams params;
    void* partial_out;   // [num_slots, num_qo_heads, head_dim], of that type
    float* partial_lse;  // [num_slots, num_qo_heads], natural log
};

// One call: the tiles, then the merge of rows with several partial states.
struct AttentionCall {
    int32_t head_dim;
    int32_t num_wide_tiles;
    int32_t num_narrow_tiles;
    int32_t num_merge_rows;
    const MergeRow* merge_rows;  // [num_merge_rows], in the device's memory
    AttentionArgs args;
};

}  // namespace batchllm::cuda
